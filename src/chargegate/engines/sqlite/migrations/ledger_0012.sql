-- As before, but said so that SQLite makes no table of its own for each row: a list of three after IN is one.
DROP TRIGGER callback_ended;
CREATE TRIGGER callback_ended AFTER UPDATE OF status ON charging_requests
WHEN old.status = 'PROCESSING' AND (new.status = 'COMPLETED' OR new.status = 'TIMEOUT' OR new.status = 'FAILED') AND ifnull(new.last_error, '') NOT IN ('lost_with_the_queue', 'malformed_request')
BEGIN INSERT INTO callback_counts VALUES (new.processed_at - new.processed_at % 3600000, new.client, new.status <> 'FAILED', new.status = 'FAILED') ON CONFLICT DO UPDATE SET delivered = delivered + excluded.delivered, failed = failed + excluded.failed; END
