"""The Redis engine: a queue on Redis Streams and the shared cache."""
