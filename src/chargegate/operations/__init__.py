"""What a person can do with the service. The HTTP API and the command line both call it."""
