"""The database: requests, decisions, dead letters, the access list, idempotency keys."""
