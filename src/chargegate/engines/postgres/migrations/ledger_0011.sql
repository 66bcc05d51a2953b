-- The ends of callbacks are counted once for each statement, not once for each row: a batch changes the counts of a few
-- clients. What ends together is of one slot, as before.
DROP TRIGGER callback_ended ON charging_requests;
DROP FUNCTION count_callback();
CREATE FUNCTION count_callbacks() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    own_slot CONSTANT integer := pg_backend_pid() % 16;
BEGIN
    IF NOT EXISTS (SELECT FROM changed WHERE status IN ('COMPLETED', 'TIMEOUT', 'FAILED')) THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('callback_counts'), own_slot);
    INSERT INTO callback_counts AS held (start, client, slot, delivered, failed)
    SELECT c.processed_at - c.processed_at % 3600000, c.client, own_slot,
        count(*) FILTER (WHERE c.status <> 'FAILED'), count(*) FILTER (WHERE c.status = 'FAILED')
    FROM changed c
    WHERE c.status IN ('COMPLETED', 'TIMEOUT', 'FAILED')
        AND c.request_id NOT IN (SELECT request_id FROM replaced WHERE status <> 'PROCESSING')
        AND coalesce(c.last_error, '') NOT IN ('lost_with_the_queue', 'malformed_request')
    GROUP BY 1, 2
    ON CONFLICT (start, client, slot) DO UPDATE
    SET delivered = held.delivered + excluded.delivered, failed = held.failed + excluded.failed;
    RETURN NULL;
END
$$;
CREATE TRIGGER callbacks_ended AFTER UPDATE ON charging_requests
REFERENCING OLD TABLE AS replaced NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION count_callbacks()
