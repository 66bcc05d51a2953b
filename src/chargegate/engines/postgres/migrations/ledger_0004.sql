-- The newest attempts at a request's callback: a JSON list with a list for each, of the time when it began, the status
-- code, the error and the duration, times in ms.
ALTER TABLE charging_requests ADD COLUMN history text NOT NULL DEFAULT ''
