-- Requests that wait in a queue which cannot list them: Kafka's and RabbitMQ's. Others never have this status.
CREATE INDEX queued_requests ON charging_requests (request_id) WHERE status = 'QUEUED'
