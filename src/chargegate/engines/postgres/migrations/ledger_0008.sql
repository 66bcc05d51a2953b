-- The files that audit rows were exported to, see ledger/exports.py.
CREATE TABLE audit_exports (
    number bigint NOT NULL PRIMARY KEY,
    file text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    until bigint NOT NULL,
    positions text NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    link text NOT NULL,
    at bigint NOT NULL
);
CREATE UNIQUE INDEX audit_exports_by_origin ON audit_exports (origin, file)
