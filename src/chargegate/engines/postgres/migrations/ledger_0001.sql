CREATE TABLE charging_requests (
    request_id text COLLATE "C" NOT NULL PRIMARY KEY,
    station_id text COLLATE "C" NOT NULL,
    driver_token_hash text,
    decision text,
    reason text,
    processing_time_ms bigint,
    decided_at bigint,
    status text NOT NULL,
    created_at bigint NOT NULL,
    started_at bigint NOT NULL,
    processed_at bigint,
    attempts integer NOT NULL DEFAULT 0,
    last_status_code integer,
    last_error text,
    sealed bytea
);
CREATE INDEX dead_letters ON charging_requests (processed_at, request_id) WHERE status = 'FAILED';
CREATE TABLE authorization_audit (
    writer text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    timestamp bigint NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    station_id text COLLATE "C" NOT NULL,
    driver_token_hash text NOT NULL,
    status text NOT NULL,
    reason text NOT NULL,
    processing_time_ms bigint NOT NULL
) PARTITION BY RANGE (timestamp);
CREATE INDEX audit_by_station ON authorization_audit (lower(station_id), timestamp);
CREATE INDEX audit_by_status ON authorization_audit (status, timestamp);
CREATE INDEX audit_by_time ON authorization_audit (timestamp, request_id);
CREATE INDEX audit_by_writer ON authorization_audit (writer, sequence);
CREATE TABLE access_list (
    driver_token_hash text COLLATE "C" NOT NULL PRIMARY KEY,
    blocked boolean NOT NULL,
    valid_from bigint,
    valid_until bigint,
    allowed_stations text NOT NULL,
    denied_stations text NOT NULL,
    note text NOT NULL
);
CREATE TABLE access_list_changes (
    number bigint NOT NULL PRIMARY KEY,
    driver_token_hash text
);
CREATE TABLE idempotency_keys (
    key_digest text COLLATE "C" NOT NULL PRIMARY KEY,
    body_digest text NOT NULL,
    request_id text NOT NULL,
    created_at bigint NOT NULL
);
CREATE INDEX idempotency_by_time ON idempotency_keys (created_at);
CREATE TABLE sink_positions (
    writer text NOT NULL,
    sink text NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (writer, sink)
);
CREATE TABLE service_facts (
    name text NOT NULL PRIMARY KEY,
    value text NOT NULL
)
