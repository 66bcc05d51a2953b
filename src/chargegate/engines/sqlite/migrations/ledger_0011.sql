-- The last hour and station whose counts are in the longer units too: those of earlier hours are, and those of that hour
-- up to that station. There is one row. Until now rows were counted in all units at once.
CREATE TABLE stations_added_up (
    start INTEGER NOT NULL,
    station_id TEXT NOT NULL
);
INSERT INTO stations_added_up SELECT ifnull(max(start) + 3599999, -1), '' FROM station_counts WHERE unit = 3600000
