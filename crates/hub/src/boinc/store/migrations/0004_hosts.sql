-- Workers that a host was before: a client that is attached anew makes a new key, and what the one before earned stays the
-- host's.
CREATE TABLE former_worker (
    run    BLOB NOT NULL,
    worker BLOB NOT NULL,
    host   INTEGER NOT NULL REFERENCES host (id),
    PRIMARY KEY (run, worker)
) STRICT, WITHOUT ROWID;
CREATE INDEX former_worker_by_host ON former_worker (host);

CREATE TRIGGER enrolment_changed AFTER UPDATE OF worker ON enrolment
WHEN NEW.worker IS NOT OLD.worker BEGIN
    INSERT OR IGNORE INTO former_worker (run, worker, host)
        SELECT OLD.run, OLD.worker, OLD.host WHERE OLD.worker IS NOT NULL;
    DELETE FROM former_worker WHERE run = NEW.run AND worker = NEW.worker;
END;

-- Whether a client got the key for the account's password; the others were made for somebody to paste.
ALTER TABLE device_key ADD COLUMN is_of_client INTEGER NOT NULL DEFAULT 0;
UPDATE device_key SET is_of_client = 1 WHERE name = 'BOINC client';

-- Failures end with a task that is granted, not with one that its client says is done.
DROP TRIGGER unit_granted;
CREATE TRIGGER unit_granted AFTER UPDATE OF state ON unit WHEN NEW.state = 'granted' AND OLD.state <> 'granted' BEGIN
    UPDATE host SET failures = 0, daily_quota = CASE WHEN daily_quota < 1000000 THEN daily_quota * 2 END
        WHERE id = NEW.host AND (failures > 0 OR daily_quota IS NOT NULL);
END;

-- Programs that were offered: a client never fetches a name twice, so that a name means the same bytes for ever.
CREATE TABLE released (
    name TEXT PRIMARY KEY,
    hash BLOB NOT NULL
) STRICT, WITHOUT ROWID;
