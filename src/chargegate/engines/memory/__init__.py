"""The memory engine: a queue in the memory of one process."""
