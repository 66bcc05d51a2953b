"""The PostgreSQL engine: queue, ledger and access list for any number of processes."""
