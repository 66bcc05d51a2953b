-- Decisions of a station with one status or reason are found in the index alone.
DROP INDEX audit_by_station;
CREATE INDEX audit_by_station ON authorization_audit (lower(station_id), timestamp, status, reason);
-- Timeouts have an index of their own, and most decisions have no reason.
CREATE INDEX audit_by_reason ON authorization_audit (reason, timestamp, request_id)
WHERE reason <> '' AND reason <> 'authorization_timeout';
-- An audit row does not say whose it is; its request does.
CREATE INDEX IF NOT EXISTS decisions_by_client ON charging_requests (client, decided_at, request_id)
WHERE client <> '' AND decided_at IS NOT NULL
