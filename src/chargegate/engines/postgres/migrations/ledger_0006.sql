-- What the analysis of the audit found. "told" says which changes of it were told: 0 none, 1 the beginning, 2 the end.
CREATE TABLE anomalies (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    type text COLLATE "C" NOT NULL,
    severity text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    since bigint NOT NULL,
    until bigint,
    description text COLLATE "C" NOT NULL,
    value double precision NOT NULL,
    threshold double precision NOT NULL,
    told bigint NOT NULL
);
CREATE UNIQUE INDEX open_anomalies ON anomalies (type, subject) WHERE until IS NULL;
CREATE INDEX anomalies_by_time ON anomalies (since, id);
CREATE INDEX anomalies_by_type ON anomalies (type, since, id);
CREATE INDEX ended_anomalies ON anomalies (until) WHERE until IS NOT NULL;
CREATE INDEX untold_anomalies ON anomalies (since, id) WHERE told = 0 OR (told = 1 AND until IS NOT NULL);
CREATE TABLE turns (
    name text COLLATE "C" NOT NULL PRIMARY KEY,
    holder text COLLATE "C" NOT NULL,
    until bigint NOT NULL
)
