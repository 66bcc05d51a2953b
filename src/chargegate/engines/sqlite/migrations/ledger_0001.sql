
CREATE TABLE charging_requests (
    request_id TEXT NOT NULL PRIMARY KEY,
    station_id TEXT NOT NULL COLLATE NOCASE,
    driver_token_hash TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    processed_at INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_status_code INTEGER,
    last_error TEXT,
    sealed BLOB
) WITHOUT ROWID;
CREATE INDEX dead_letters ON charging_requests (processed_at, request_id) WHERE status = 'FAILED';
CREATE TABLE authorization_audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp INTEGER NOT NULL,
    request_id TEXT NOT NULL UNIQUE,
    station_id TEXT NOT NULL COLLATE NOCASE,
    driver_token_hash TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    processing_time_ms INTEGER NOT NULL
);
CREATE INDEX audit_by_station ON authorization_audit (station_id, timestamp);
CREATE INDEX audit_by_status ON authorization_audit (status, timestamp);
CREATE INDEX audit_by_time ON authorization_audit (timestamp);
CREATE TABLE access_list (
    driver_token_hash TEXT NOT NULL PRIMARY KEY,
    blocked INTEGER NOT NULL,
    valid_from INTEGER,
    valid_until INTEGER,
    allowed_stations TEXT NOT NULL,
    denied_stations TEXT NOT NULL,
    note TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE access_list_changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    driver_token_hash TEXT
);
CREATE TABLE idempotency_keys (
    key_digest TEXT NOT NULL PRIMARY KEY,
    body_digest TEXT NOT NULL,
    request_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX idempotency_by_time ON idempotency_keys (created_at);
CREATE TABLE sink_positions (
    sink TEXT NOT NULL PRIMARY KEY,
    sequence INTEGER NOT NULL
);
CREATE TABLE service_facts (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
)
