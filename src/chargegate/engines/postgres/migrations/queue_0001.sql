CREATE TABLE {table} (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id text COLLATE "C" NOT NULL,
    station_id text NOT NULL,
    accepted_at bigint NOT NULL,
    body bytea NOT NULL,
    deliveries integer NOT NULL,
    lease uuid,
    lease_until timestamptz,
    UNIQUE (request_id, accepted_at)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX {table}_free ON {table} (seq) WHERE lease_until IS NULL;
CREATE INDEX {table}_leased ON {table} (lease_until) WHERE lease_until IS NOT NULL
