-- What the analysis of the audit found. "told" says which changes of it were told: 0 none, 1 the beginning, 2 the end.
CREATE TABLE anomalies (
    id TEXT NOT NULL PRIMARY KEY,
    type TEXT NOT NULL,
    severity TEXT NOT NULL,
    subject TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    description TEXT NOT NULL,
    value REAL NOT NULL,
    threshold REAL NOT NULL,
    told INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX open_anomalies ON anomalies (type, subject) WHERE until IS NULL;
CREATE INDEX anomalies_by_time ON anomalies (since, id);
CREATE INDEX anomalies_by_type ON anomalies (type, since, id);
CREATE INDEX ended_anomalies ON anomalies (until) WHERE until IS NOT NULL;
CREATE INDEX untold_anomalies ON anomalies (since, id) WHERE told = 0 OR (told = 1 AND until IS NOT NULL);
CREATE TABLE turns (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    until INTEGER NOT NULL
) WITHOUT ROWID
