ALTER TABLE charging_requests ADD COLUMN client text COLLATE "C" NOT NULL DEFAULT ''
