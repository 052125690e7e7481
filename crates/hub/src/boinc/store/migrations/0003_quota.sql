-- How many tasks a host is given in a day, and what is over is removed some day.
-- Less than the run allows, after tasks that failed or were given up; NULL for all of it.
ALTER TABLE host ADD COLUMN daily_quota INTEGER;
-- Tasks given on a day, in days since 1970.
ALTER TABLE host ADD COLUMN given_day INTEGER NOT NULL DEFAULT 0;
ALTER TABLE host ADD COLUMN given_on_day INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER unit_given AFTER INSERT ON unit BEGIN
    UPDATE host SET given_on_day = CASE given_day WHEN NEW.sent_ms / 86400000 THEN given_on_day + 1 ELSE 1 END,
        given_day = NEW.sent_ms / 86400000 WHERE id = NEW.host;
END;

-- Each task that was granted doubles a quota that was lessened.
CREATE TRIGGER unit_granted AFTER UPDATE OF state ON unit WHEN NEW.state = 'granted' AND OLD.state <> 'granted' BEGIN
    UPDATE host SET daily_quota = CASE WHEN daily_quota < 1000000 THEN daily_quota * 2 END
        WHERE id = NEW.host AND daily_quota IS NOT NULL;
END;

-- By age too: old tasks are looked for.
DROP INDEX unit_by_state;
CREATE INDEX unit_by_state ON unit (state, deadline_ms);
CREATE INDEX spot_check_by_age ON spot_check (created_ms);
