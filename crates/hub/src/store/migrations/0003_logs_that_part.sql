-- Entries of this copy that count no more, because another hub's log does.
CREATE TABLE set_aside (
    run          BLOB NOT NULL REFERENCES run (id),
    position     INTEGER NOT NULL,
    entry        BLOB NOT NULL,
    set_aside_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX set_aside_by_run ON set_aside (run, position);

-- Proofs that one key said two things that exclude each other.
CREATE TABLE equivocation (
    run      BLOB NOT NULL REFERENCES run (id),
    id       BLOB NOT NULL,
    proof    BLOB NOT NULL,
    found_ms INTEGER NOT NULL,
    PRIMARY KEY (run, id)
) STRICT, WITHOUT ROWID;
