CREATE TABLE audit_chain (
    number INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,
    mac BLOB NOT NULL
);
CREATE INDEX audit_chain_by_row ON audit_chain (sequence)
