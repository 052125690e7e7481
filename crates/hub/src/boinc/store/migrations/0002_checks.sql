-- Updates that hosts of other accounts are to make again, and what came of it.
CREATE TABLE spot_check (
    id           INTEGER PRIMARY KEY,
    -- The task whose update is checked.
    unit         TEXT NOT NULL UNIQUE,
    run          BLOB NOT NULL,
    account      INTEGER NOT NULL,
    host         INTEGER NOT NULL,
    -- The task's signed file: what is to be done again; gone with the last word.
    sealed       BLOB,
    update_hash  BLOB NOT NULL,
    update_bytes INTEGER NOT NULL,
    steps        INTEGER NOT NULL,
    arithmetic   TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    -- open, agreed, differs or dropped.
    state        TEXT NOT NULL
) STRICT;
CREATE INDEX spot_check_by_run ON spot_check (run, state, id);

CREATE TABLE spot_copy (
    -- The task that makes it.
    unit       TEXT PRIMARY KEY,
    spot_check INTEGER NOT NULL REFERENCES spot_check (id),
    account    INTEGER NOT NULL,
    host       INTEGER NOT NULL,
    -- What it came to: both arithmetic classes, the angle between both updates, whether they agree.
    classes    TEXT,
    cosine     REAL,
    agrees     INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX spot_copy_by_check ON spot_copy (spot_check);
CREATE INDEX spot_copy_by_classes ON spot_copy (classes) WHERE classes IS NOT NULL;

-- Spot checks in a row that agreed with the host.
ALTER TABLE host ADD COLUMN valid_in_row INTEGER NOT NULL DEFAULT 0;
