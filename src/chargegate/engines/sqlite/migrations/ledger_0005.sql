-- How many decisions there were: in all, and by station, in units of time (ms) that begin at "start". The counts are made
-- from the rows of authorization_audit, and outlive them. What is not counted yet is listed in uncounted_decisions: its
-- row with the largest "last" has no end, because every later row belongs to it too. Rows from before "since" are not meant.
CREATE TABLE decision_counts (
    unit INTEGER NOT NULL,
    start INTEGER NOT NULL,
    status TEXT NOT NULL,
    decisions INTEGER NOT NULL,
    timeouts INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    circuit_open INTEGER NOT NULL,
    expired_in_queue INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    le_1 INTEGER NOT NULL,
    le_5 INTEGER NOT NULL,
    le_10 INTEGER NOT NULL,
    le_25 INTEGER NOT NULL,
    le_50 INTEGER NOT NULL,
    le_100 INTEGER NOT NULL,
    le_200 INTEGER NOT NULL,
    le_500 INTEGER NOT NULL,
    le_1000 INTEGER NOT NULL,
    le_2500 INTEGER NOT NULL,
    le_5000 INTEGER NOT NULL,
    le_10000 INTEGER NOT NULL,
    le_30000 INTEGER NOT NULL,
    PRIMARY KEY (unit, start, status)
) WITHOUT ROWID;
CREATE TABLE station_counts (
    unit INTEGER NOT NULL,
    start INTEGER NOT NULL,
    station_id TEXT NOT NULL,
    decisions INTEGER NOT NULL,
    allowed INTEGER NOT NULL,
    not_allowed INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    invalid INTEGER NOT NULL,
    timeouts INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    circuit_open INTEGER NOT NULL,
    expired_in_queue INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    PRIMARY KEY (unit, start, station_id)
) WITHOUT ROWID;
CREATE TABLE known_stations (
    station_id TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE uncounted_decisions (
    first INTEGER NOT NULL,
    last INTEGER NOT NULL PRIMARY KEY,
    since INTEGER NOT NULL
);
INSERT INTO uncounted_decisions VALUES (1, 9223372036854775807, 0);
CREATE INDEX audit_timeouts ON authorization_audit (timestamp, request_id) WHERE reason = 'authorization_timeout';
CREATE INDEX audit_timeouts_by_station ON authorization_audit (station_id, timestamp, request_id)
WHERE reason = 'authorization_timeout';
-- How callbacks ended, by the hour (ms) in which they did. Requests that were lost with a queue in memory, and messages
-- that could not be read, had none.
CREATE TABLE callback_counts (
    start INTEGER NOT NULL,
    client TEXT NOT NULL,
    delivered INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (start, client)
) WITHOUT ROWID;
CREATE TRIGGER callback_ended AFTER UPDATE OF status ON charging_requests
WHEN old.status = 'PROCESSING' AND new.status IN ('COMPLETED', 'TIMEOUT', 'FAILED') AND ifnull(new.last_error, '') NOT IN ('lost_with_the_queue', 'malformed_request')
BEGIN INSERT INTO callback_counts VALUES (new.processed_at - new.processed_at % 3600000, new.client, new.status <> 'FAILED', new.status = 'FAILED') ON CONFLICT DO UPDATE SET delivered = delivered + excluded.delivered, failed = failed + excluded.failed; END
