"""The answer budget: a client is answered within two seconds, whatever the servers behind the API do.

Every shorter time limit on the way to an answer is a share of it.
"""

from typing import Final

ANSWER_S: Final = 2.0
"""The whole budget, in seconds."""

REQUEST_S: Final = 0.95 * ANSWER_S
"""For everything that one request waits for: its idempotency claim and its put together."""

STORE_S: Final = 0.9 * ANSWER_S
"""For one operation of an engine, with all attempts at it: a put, a transaction."""

EXCHANGE_S: Final = 0.75 * ANSWER_S
"""For one question to a server and its answer."""

LOCK_S: Final = 0.6 * ANSWER_S
"""For a lock that another program holds on the embedded database."""

LEDGER_S: Final = 0.5 * ANSWER_S
"""For the ledger where a shared cache can take its place."""

CACHE_S: Final = 0.125 * ANSWER_S
"""For a cache that can be done without."""

LAST_ANSWERS_S: Final = 1.25 * ANSWER_S
"""For the answers that are under way when a server stops: longer than the budget, so that none is cut off."""
