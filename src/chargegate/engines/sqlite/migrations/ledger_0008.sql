-- The files that audit rows were exported to, see ledger/exports.py.
CREATE TABLE audit_exports (
    number INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    origin TEXT NOT NULL,
    until INTEGER NOT NULL,
    positions TEXT NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    link TEXT NOT NULL,
    at INTEGER NOT NULL
);
CREATE UNIQUE INDEX audit_exports_by_origin ON audit_exports (origin, file)
