-- Which process has which name, and until when by the server's clock.
CREATE TABLE process_names (
    name text PRIMARY KEY,
    holder text NOT NULL,
    held_until timestamptz NOT NULL
);
