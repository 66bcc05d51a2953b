
CREATE TABLE queue (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    station_id TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX queue_by_request ON queue (request_id)
