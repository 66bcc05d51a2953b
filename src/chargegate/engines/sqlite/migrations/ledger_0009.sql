-- Decisions of a station with one status or reason are found in the index alone.
DROP INDEX audit_by_station;
CREATE INDEX audit_by_station ON authorization_audit (station_id, timestamp, status, reason);
-- Timeouts have an index of their own, and most decisions have no reason.
CREATE INDEX audit_by_reason ON authorization_audit (reason, timestamp, request_id)
WHERE reason <> '' AND reason <> 'authorization_timeout';
-- An audit row does not say whose it is; its request does. So this is an index of both, kept up by triggers wherever
-- requests change. A request's audit row is inserted before it, and deleted after it.
CREATE TABLE client_decisions (
    client TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    PRIMARY KEY (client, timestamp, request_id)
) WITHOUT ROWID;
INSERT INTO client_decisions SELECT r.client, a.timestamp, r.request_id
FROM charging_requests r JOIN authorization_audit a USING (request_id) WHERE r.client <> '' ORDER BY 1, 2, 3;
CREATE TRIGGER client_decided AFTER INSERT ON charging_requests WHEN new.client <> ''
BEGIN INSERT OR IGNORE INTO client_decisions SELECT new.client, timestamp, request_id FROM authorization_audit WHERE request_id = new.request_id; END;
CREATE TRIGGER client_decided_later AFTER UPDATE OF client ON charging_requests WHEN new.client <> ''
BEGIN INSERT OR IGNORE INTO client_decisions SELECT new.client, timestamp, request_id FROM authorization_audit WHERE request_id = new.request_id; END;
CREATE TRIGGER client_decision_gone AFTER DELETE ON charging_requests WHEN old.client <> ''
BEGIN DELETE FROM client_decisions WHERE client = old.client AND request_id = old.request_id AND timestamp = (SELECT timestamp FROM authorization_audit WHERE request_id = old.request_id); END
