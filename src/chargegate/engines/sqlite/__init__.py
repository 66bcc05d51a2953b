"""The SQLite engine: the embedded queue, ledger and access list in one file."""
