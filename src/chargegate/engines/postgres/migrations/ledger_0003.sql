-- A dead letter is a request that is FAILED with something sealed. The triggers count them wherever rows change, in
-- the same transaction. The first 5 bytes of what is sealed name the key. A client's count is the sum of 16 slots, so
-- that processes seldom wait for each other; a slot is locked as a whole, so that they never wait in a circle.
CREATE TABLE dead_letter_counts (
    client text COLLATE "C" NOT NULL,
    sealed_with bytea NOT NULL,
    slot integer NOT NULL,
    letters bigint NOT NULL,
    PRIMARY KEY (client, sealed_with, slot)
) WITH (fillfactor = 50);
CREATE OR REPLACE FUNCTION count_dead_letter() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    own_slot CONSTANT integer := pg_backend_pid() % 16;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('dead_letter_counts'), own_slot);
    IF TG_OP <> 'INSERT' AND OLD.status = 'FAILED' AND OLD.sealed IS NOT NULL THEN
        INSERT INTO dead_letter_counts AS held VALUES (OLD.client, substring(OLD.sealed FROM 1 FOR 5), own_slot, -1)
        ON CONFLICT (client, sealed_with, slot) DO UPDATE SET letters = held.letters - 1;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.status = 'FAILED' AND NEW.sealed IS NOT NULL THEN
        INSERT INTO dead_letter_counts AS held VALUES (NEW.client, substring(NEW.sealed FROM 1 FOR 5), own_slot, 1)
        ON CONFLICT (client, sealed_with, slot) DO UPDATE SET letters = held.letters + 1;
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE FUNCTION count_no_dead_letters() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM dead_letter_counts;
    RETURN NULL;
END
$$;
CREATE TRIGGER dead_letter_put AFTER INSERT ON charging_requests FOR EACH ROW
WHEN (NEW.status = 'FAILED' AND NEW.sealed IS NOT NULL) EXECUTE FUNCTION count_dead_letter();
CREATE TRIGGER dead_letter_changed AFTER UPDATE OF status, sealed, client ON charging_requests FOR EACH ROW
WHEN (OLD.status = 'FAILED' AND OLD.sealed IS NOT NULL OR NEW.status = 'FAILED' AND NEW.sealed IS NOT NULL)
EXECUTE FUNCTION count_dead_letter();
CREATE TRIGGER dead_letter_gone AFTER DELETE ON charging_requests FOR EACH ROW
WHEN (OLD.status = 'FAILED' AND OLD.sealed IS NOT NULL) EXECUTE FUNCTION count_dead_letter();
CREATE TRIGGER dead_letters_emptied AFTER TRUNCATE ON charging_requests EXECUTE FUNCTION count_no_dead_letters();
INSERT INTO dead_letter_counts SELECT client, substring(sealed FROM 1 FOR 5), 0, count(*) FROM charging_requests
WHERE status = 'FAILED' AND sealed IS NOT NULL GROUP BY 1, 2;
DROP INDEX dead_letters;
CREATE INDEX dead_letters ON charging_requests (processed_at, request_id)
WHERE status = 'FAILED' AND sealed IS NOT NULL;
CREATE INDEX dead_letters_by_client ON charging_requests (client, processed_at, request_id)
WHERE status = 'FAILED' AND sealed IS NOT NULL;
CREATE INDEX IF NOT EXISTS finished_requests ON charging_requests (processed_at, request_id)
WHERE processed_at IS NOT NULL AND sealed IS NULL
