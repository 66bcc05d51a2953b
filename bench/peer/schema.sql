CREATE TABLE requests (
    request_id uuid PRIMARY KEY,
    station_id uuid NOT NULL,
    driver_token_hash text NOT NULL,
    status text NOT NULL,
    created_at double precision NOT NULL,
    processed_at double precision NOT NULL
);
