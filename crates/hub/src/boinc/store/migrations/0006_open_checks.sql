-- Whether a check is too old is asked with each request that looks for one: of the oldest, not of all.
CREATE INDEX spot_check_open ON spot_check (run, created_ms) WHERE state = 'open';
