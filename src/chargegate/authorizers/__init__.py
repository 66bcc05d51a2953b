"""Authorizers, and what is wrapped around them: cache, circuit breaker, deadline."""
