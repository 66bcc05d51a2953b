"""chargegate: the asynchronous authorization gate for EV charging."""

__version__ = "0.1.0"
