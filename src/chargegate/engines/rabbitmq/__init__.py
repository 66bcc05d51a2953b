"""The RabbitMQ engine: a quorum queue."""
