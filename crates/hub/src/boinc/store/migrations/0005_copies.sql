-- Whether a machine makes a copy for a check just now: looked for among all checks of a run with each request for work.
ALTER TABLE spot_check ADD COLUMN is_made INTEGER NOT NULL DEFAULT 0;
UPDATE spot_check SET is_made = 1 WHERE state = 'open' AND EXISTS (
    SELECT 1 FROM spot_copy JOIN unit ON unit.name = spot_copy.unit
    WHERE spot_check = spot_check.id AND agrees IS NULL AND unit.state IN ('sent', 'uploaded'));

DROP INDEX spot_check_by_run;
CREATE INDEX spot_check_by_run ON spot_check (run, state, is_made, id);

-- One copy may end after another was begun: a client reports late what was given up before.
CREATE TRIGGER copy_ended AFTER UPDATE OF state ON unit
WHEN NEW.kind = 'again' AND NEW.state NOT IN ('sent', 'uploaded') BEGIN
    UPDATE spot_check SET is_made = EXISTS (
        SELECT 1 FROM spot_copy JOIN unit ON unit.name = spot_copy.unit
        WHERE spot_check = spot_check.id AND agrees IS NULL AND unit.state IN ('sent', 'uploaded'))
        WHERE id = (SELECT spot_check FROM spot_copy WHERE unit = NEW.name);
END;
