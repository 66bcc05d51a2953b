-- How many decisions there were: in all, and by station, in units of time (ms) that begin at "start". The counts are made
-- from the rows of authorization_audit, and outlive them.
CREATE TABLE decision_counts (
    unit bigint NOT NULL,
    start bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    decisions bigint NOT NULL,
    timeouts bigint NOT NULL,
    errors bigint NOT NULL,
    circuit_open bigint NOT NULL,
    expired_in_queue bigint NOT NULL,
    time_ms bigint NOT NULL,
    le_1 bigint NOT NULL,
    le_5 bigint NOT NULL,
    le_10 bigint NOT NULL,
    le_25 bigint NOT NULL,
    le_50 bigint NOT NULL,
    le_100 bigint NOT NULL,
    le_200 bigint NOT NULL,
    le_500 bigint NOT NULL,
    le_1000 bigint NOT NULL,
    le_2500 bigint NOT NULL,
    le_5000 bigint NOT NULL,
    le_10000 bigint NOT NULL,
    le_30000 bigint NOT NULL,
    PRIMARY KEY (unit, start, status)
) WITH (fillfactor = 70);
CREATE TABLE station_counts (
    unit bigint NOT NULL,
    start bigint NOT NULL,
    station_id text COLLATE "C" NOT NULL,
    decisions bigint NOT NULL,
    allowed bigint NOT NULL,
    not_allowed bigint NOT NULL,
    unknown bigint NOT NULL,
    invalid bigint NOT NULL,
    timeouts bigint NOT NULL,
    errors bigint NOT NULL,
    circuit_open bigint NOT NULL,
    expired_in_queue bigint NOT NULL,
    time_ms bigint NOT NULL,
    PRIMARY KEY (unit, start, station_id)
) WITH (fillfactor = 70);
CREATE TABLE known_stations (
    station_id text COLLATE "C" NOT NULL PRIMARY KEY
);
-- The rows that are not counted yet, as ranges of a writer's numbers. Each transaction that writes rows notes its own
-- ranges, so that none is passed over, in whatever order transactions commit. Rows from before "since" are not meant.
CREATE TABLE uncounted_decisions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer text COLLATE "C" NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    earliest bigint NOT NULL,
    latest bigint NOT NULL,
    since bigint NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE OR REPLACE FUNCTION note_uncounted_decisions() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    SELECT min(writer) AS writer, max(writer) AS other, count(*) AS rows, min(sequence) AS first, max(sequence) AS last,
        min(timestamp) AS earliest, max(timestamp) AS latest INTO r FROM written;
    IF r.writer = r.other AND r.rows = r.last - r.first + 1 THEN
        INSERT INTO uncounted_decisions (writer, first, last, earliest, latest)
        VALUES (r.writer, r.first, r.last, r.earliest, r.latest);
    ELSIF r.rows > 0 THEN
        INSERT INTO uncounted_decisions (writer, first, last, earliest, latest)
        SELECT writer, min(sequence), max(sequence), min(timestamp), max(timestamp)
        FROM (SELECT *, sequence - row_number() OVER (PARTITION BY writer ORDER BY sequence) AS run FROM written) w
        GROUP BY writer, run;
    END IF;
    RETURN NULL;
END
$$;
INSERT INTO uncounted_decisions (writer, first, last, earliest, latest)
SELECT writer, min(sequence), max(sequence), min(timestamp), max(timestamp)
FROM (SELECT *, sequence - row_number() OVER (PARTITION BY writer ORDER BY sequence) AS run FROM authorization_audit) w
GROUP BY writer, run;
CREATE TRIGGER decisions_written AFTER INSERT ON authorization_audit REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION note_uncounted_decisions();
CREATE INDEX audit_timeouts ON authorization_audit (timestamp, request_id) WHERE reason = 'authorization_timeout';
CREATE INDEX audit_timeouts_by_station ON authorization_audit (lower(station_id), timestamp, request_id)
WHERE reason = 'authorization_timeout';
-- How callbacks ended, by the hour (ms) in which they did. Requests that were lost with a queue in memory, and messages
-- that could not be read, had none. A client's count is the sum of 16 slots, so that processes seldom wait for each
-- other; a slot is locked as a whole, so that they never wait in a circle.
CREATE TABLE callback_counts (
    start bigint NOT NULL,
    client text COLLATE "C" NOT NULL,
    slot integer NOT NULL,
    delivered bigint NOT NULL,
    failed bigint NOT NULL,
    PRIMARY KEY (start, client, slot)
) WITH (fillfactor = 50);
CREATE OR REPLACE FUNCTION count_callback() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    own_slot CONSTANT integer := pg_backend_pid() % 16;
    was_failed CONSTANT integer := (NEW.status = 'FAILED')::integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('callback_counts'), own_slot);
    INSERT INTO callback_counts AS held
    VALUES (NEW.processed_at - NEW.processed_at % 3600000, NEW.client, own_slot, 1 - was_failed, was_failed)
    ON CONFLICT (start, client, slot) DO UPDATE
    SET delivered = held.delivered + excluded.delivered, failed = held.failed + excluded.failed;
    RETURN NULL;
END
$$;
CREATE TRIGGER callback_ended AFTER UPDATE OF status ON charging_requests FOR EACH ROW
WHEN (OLD.status = 'PROCESSING' AND NEW.status IN ('COMPLETED', 'TIMEOUT', 'FAILED')
    AND coalesce(NEW.last_error, '') NOT IN ('lost_with_the_queue', 'malformed_request'))
EXECUTE FUNCTION count_callback()
