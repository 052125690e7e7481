-- What the BOINC door keeps to itself: nothing here is in a log. What an account earned is folded from the logs and is not here.
CREATE TABLE team (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE COLLATE NOCASE,
    founder    INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE account (
    id               INTEGER PRIMARY KEY,
    email            TEXT NOT NULL UNIQUE,
    name             TEXT NOT NULL,
    -- Argon2 of BOINC's hash of the password.
    password         TEXT NOT NULL,
    key              BLOB NOT NULL UNIQUE,
    -- The key's secret, where the hub made and holds it.
    held_key         TEXT,
    -- The person's own key, for which the log lets the held one act.
    own_key          BLOB UNIQUE,
    cross_id         TEXT NOT NULL,
    team             INTEGER REFERENCES team (id),
    shows_statistics INTEGER NOT NULL DEFAULT 0,
    created_ms       INTEGER NOT NULL
) STRICT;
CREATE INDEX account_by_team ON account (team);

CREATE TABLE device_key (
    id         INTEGER PRIMARY KEY,
    hash       BLOB NOT NULL UNIQUE,
    account    INTEGER NOT NULL REFERENCES account (id),
    name       TEXT NOT NULL,
    made_ms    INTEGER NOT NULL,
    used_ms    INTEGER,
    revoked_ms INTEGER
) STRICT;
CREATE INDEX device_key_by_account ON device_key (account);

-- Sessions of browsers, and links that open one session.
CREATE TABLE session (
    hash       BLOB PRIMARY KEY,
    account    INTEGER NOT NULL REFERENCES account (id),
    is_link    INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_by_expiry ON session (expires_ms);
CREATE INDEX session_by_account ON session (account);

CREATE TABLE host (
    id             INTEGER PRIMARY KEY,
    account        INTEGER NOT NULL REFERENCES account (id),
    cpid           TEXT NOT NULL,
    sequence       INTEGER NOT NULL,
    created_ms     INTEGER NOT NULL,
    seen_ms        INTEGER NOT NULL,
    platform       TEXT NOT NULL,
    client_version TEXT NOT NULL,
    timezone       INTEGER NOT NULL,
    processors     INTEGER NOT NULL,
    vendor         TEXT NOT NULL,
    model          TEXT NOT NULL,
    flops          REAL NOT NULL,
    iops           REAL NOT NULL,
    memory_bytes   INTEGER NOT NULL,
    disk_bytes     INTEGER NOT NULL,
    os_name        TEXT NOT NULL,
    os_version     TEXT NOT NULL,
    -- Tasks in a row that came to nothing, and when the last one did.
    failures       INTEGER NOT NULL DEFAULT 0,
    failed_ms      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX host_by_account ON host (account, cpid);

-- Which worker a host is in a run.
CREATE TABLE enrolment (
    host          INTEGER NOT NULL REFERENCES host (id),
    run           BLOB NOT NULL,
    worker        BLOB,
    -- Whether its key is another host's: it must make a new one.
    is_copy       INTEGER NOT NULL DEFAULT 0,
    -- Log position of the refusal that it was told of last.
    refusal_told  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (host, run)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX enrolment_by_worker ON enrolment (run, worker);

CREATE TABLE unit (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    host        INTEGER NOT NULL REFERENCES host (id),
    account     INTEGER NOT NULL REFERENCES account (id),
    run         BLOB NOT NULL,
    kind        TEXT NOT NULL,
    round       INTEGER,
    worker      BLOB,
    -- The signed file; gone when nobody asks for it any more.
    sealed      BLOB,
    sealed_hash BLOB NOT NULL,
    upload_max  INTEGER NOT NULL,
    -- Expected time in milliseconds.
    expected_ms INTEGER NOT NULL,
    sent_ms     INTEGER NOT NULL,
    deadline_ms INTEGER NOT NULL,
    state       TEXT NOT NULL,
    uploaded_ms INTEGER,
    uploaded_bytes INTEGER,
    reported_ms INTEGER,
    refusal     TEXT,
    is_told     INTEGER NOT NULL DEFAULT 1,
    -- What the running application told last.
    progress_ppm INTEGER,
    steps_told   INTEGER,
    loss_told    INTEGER,
    exit_status INTEGER,
    stderr      TEXT,
    cpu_ms      INTEGER,
    elapsed_ms  INTEGER,
    tokens_measured INTEGER,
    loss_measured   INTEGER,
    loss_of_hub     INTEGER
) STRICT;
CREATE INDEX unit_by_host ON unit (host, id);
CREATE INDEX unit_by_sealed ON unit (sealed_hash);
CREATE INDEX unit_by_state ON unit (state);

-- MD5 of files, as BOINC clients check it; computed once.
CREATE TABLE file (
    hash  BLOB PRIMARY KEY,
    bytes INTEGER NOT NULL,
    md5   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
