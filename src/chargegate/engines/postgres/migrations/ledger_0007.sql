CREATE TABLE audit_chain (
    writer text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    sequence bigint NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (writer, number)
);
CREATE INDEX audit_chain_by_row ON audit_chain (writer, sequence)
