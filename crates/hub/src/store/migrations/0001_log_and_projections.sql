-- The log of each run, and what is folded from it. The log is the truth; every other table can be rebuilt from it.
CREATE TABLE run (
    id          BLOB PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    created_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE log (
    run      BLOB NOT NULL REFERENCES run (id),
    position INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    entry    BLOB NOT NULL,
    PRIMARY KEY (run, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE round (
    run             BLOB NOT NULL REFERENCES run (id),
    round           INTEGER NOT NULL,
    phase           TEXT NOT NULL,
    opened_ms       INTEGER NOT NULL,
    deadline_ms     INTEGER NOT NULL,
    closed_ms       INTEGER,
    ended_ms        INTEGER,
    tokens          INTEGER NOT NULL DEFAULT 0,
    delta           BLOB,
    delta_bytes     INTEGER,
    parameters_hash BLOB,
    opened_event    INTEGER NOT NULL,
    ended_event     INTEGER,
    PRIMARY KEY (run, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE contribution (
    run           BLOB NOT NULL,
    round         INTEGER NOT NULL,
    slot          INTEGER NOT NULL,
    worker        BLOB NOT NULL,
    state         TEXT NOT NULL,
    steps         INTEGER,
    tokens        INTEGER,
    loss          INTEGER,
    update_hash   BLOB,
    update_bytes  INTEGER,
    weight        INTEGER,
    credits_micro INTEGER,
    committed_ms  INTEGER,
    judged_ms     INTEGER,
    refusal       TEXT,
    event         INTEGER NOT NULL,
    PRIMARY KEY (run, round, slot)
) STRICT, WITHOUT ROWID;
CREATE INDEX contribution_by_worker ON contribution (run, worker, round);

CREATE TABLE worker (
    run                BLOB NOT NULL REFERENCES run (id),
    id                 BLOB NOT NULL,
    name               TEXT NOT NULL,
    joined             INTEGER NOT NULL,
    joined_ms          INTEGER NOT NULL,
    arithmetic         TEXT NOT NULL,
    threads            INTEGER NOT NULL,
    tokens_per_s       INTEGER NOT NULL,
    tokens             INTEGER NOT NULL DEFAULT 0,
    credits_micro      INTEGER NOT NULL DEFAULT 0,
    updates_accepted   INTEGER NOT NULL DEFAULT 0,
    updates_refused    INTEGER NOT NULL DEFAULT 0,
    bytes_up           INTEGER NOT NULL DEFAULT 0,
    last_refusal       TEXT,
    last_refusal_event INTEGER,
    last_round         INTEGER,
    event              INTEGER NOT NULL,
    PRIMARY KEY (run, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE loss (
    run              BLOB NOT NULL REFERENCES run (id),
    round            INTEGER NOT NULL,
    tokens           INTEGER NOT NULL,
    time_ms          INTEGER NOT NULL,
    training         INTEGER,
    held_out         INTEGER,
    bits_per_byte    INTEGER,
    event            INTEGER NOT NULL,
    PRIMARY KEY (run, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoint (
    run             BLOB NOT NULL REFERENCES run (id),
    round           INTEGER NOT NULL,
    time_ms         INTEGER NOT NULL,
    blob            BLOB NOT NULL,
    bytes           INTEGER NOT NULL,
    parameters_hash BLOB NOT NULL,
    event           INTEGER NOT NULL,
    PRIMARY KEY (run, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE sample (
    run    BLOB NOT NULL REFERENCES run (id),
    round  INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    text   TEXT NOT NULL,
    PRIMARY KEY (run, round)
) STRICT, WITHOUT ROWID;
