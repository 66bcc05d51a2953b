-- A dead letter is a request that is FAILED with something sealed. The triggers count them wherever rows change, in
-- the same transaction. The first 5 bytes of what is sealed name the key. A trigger stands in one line, because a
-- semicolon at the end of a line ends a statement here.
CREATE TABLE dead_letter_counts (
    client TEXT NOT NULL,
    sealed_with BLOB NOT NULL,
    letters INTEGER NOT NULL,
    PRIMARY KEY (client, sealed_with)
) WITHOUT ROWID;
INSERT INTO dead_letter_counts SELECT client, substr(sealed, 1, 5), count(*) FROM charging_requests
WHERE status = 'FAILED' AND sealed NOTNULL GROUP BY 1, 2;
CREATE TRIGGER dead_letter_put AFTER INSERT ON charging_requests WHEN new.status = 'FAILED' AND new.sealed NOTNULL
BEGIN INSERT INTO dead_letter_counts VALUES (new.client, substr(new.sealed, 1, 5), 1) ON CONFLICT DO UPDATE SET letters = letters + 1; END;
CREATE TRIGGER dead_letter_made AFTER UPDATE OF status, sealed, client ON charging_requests
WHEN new.status = 'FAILED' AND new.sealed NOTNULL
BEGIN INSERT INTO dead_letter_counts VALUES (new.client, substr(new.sealed, 1, 5), 1) ON CONFLICT DO UPDATE SET letters = letters + 1; END;
CREATE TRIGGER dead_letter_left AFTER UPDATE OF status, sealed, client ON charging_requests
WHEN old.status = 'FAILED' AND old.sealed NOTNULL
BEGIN UPDATE dead_letter_counts SET letters = letters - 1 WHERE client = old.client AND sealed_with = substr(old.sealed, 1, 5); END;
CREATE TRIGGER dead_letter_gone AFTER DELETE ON charging_requests WHEN old.status = 'FAILED' AND old.sealed NOTNULL
BEGIN UPDATE dead_letter_counts SET letters = letters - 1 WHERE client = old.client AND sealed_with = substr(old.sealed, 1, 5); END;
DROP INDEX dead_letters;
CREATE INDEX dead_letters ON charging_requests (processed_at, request_id) WHERE status = 'FAILED' AND sealed NOTNULL;
CREATE INDEX dead_letters_by_client ON charging_requests (client, processed_at, request_id)
WHERE status = 'FAILED' AND sealed NOTNULL;
CREATE INDEX finished_requests ON charging_requests (processed_at, request_id)
WHERE processed_at NOTNULL AND sealed ISNULL
