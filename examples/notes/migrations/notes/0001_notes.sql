-- depends: core_0004
-- Notes, and with whom their owners share them.

-- By whoever migrates: sluice_owner may create no schemas.
CREATE SCHEMA notes AUTHORIZATION sluice_owner;

SET LOCAL ROLE sluice_owner;
GRANT USAGE ON SCHEMA notes TO authenticated_users;

CREATE TABLE notes.notes (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    owner text NOT NULL DEFAULT sluice.current_user_id(),
    title text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    body text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (id, owner)
);
CREATE INDEX ON notes.notes (owner, created_at);

-- Foreign keys look past policies. So this one holds the owner too: else anybody could share a stranger's note
-- with themselves, if they knew its id.
CREATE TABLE notes.shares (
    note_id uuid NOT NULL,
    owner text NOT NULL DEFAULT sluice.current_user_id(),
    reader text NOT NULL,
    PRIMARY KEY (note_id, reader),
    FOREIGN KEY (note_id, owner) REFERENCES notes.notes (id, owner) ON DELETE CASCADE
);
CREATE INDEX ON notes.shares (reader);

GRANT SELECT, INSERT, UPDATE, DELETE ON notes.notes, notes.shares TO sluice_readwrite, sluice_admin;
GRANT SELECT ON notes.notes, notes.shares TO sluice_readonly;

-- FORCE binds the owner too.
ALTER TABLE notes.notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE notes.shares ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- Each call stands in a SELECT of its own, so that it runs once for a query. Permissions are any words: a key has
-- read:notes if it was made with it. The policies of notes look at shares, so those of shares never look at notes.
-- Each names both roles: which of them a statement gets depends on where it is sent.
CREATE POLICY given ON notes.shares FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (reader = (SELECT sluice.current_user_id('read:notes')));
CREATE POLICY own ON notes.shares TO sluice_readwrite, sluice_readonly
    USING (owner = (SELECT sluice.current_user_id('write:notes')))
    WITH CHECK (owner = (SELECT sluice.current_user_id('write:notes')));
CREATE POLICY admin ON notes.shares TO sluice_admin USING (true) WITH CHECK (true);

CREATE POLICY seen ON notes.notes FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (owner = (SELECT sluice.current_user_id('read:notes'))
           OR id = ANY (ARRAY(SELECT s.note_id FROM notes.shares s
                              WHERE s.reader = (SELECT sluice.current_user_id('read:notes')))));
CREATE POLICY own ON notes.notes TO sluice_readwrite, sluice_readonly
    USING (owner = (SELECT sluice.current_user_id('write:notes')))
    WITH CHECK (owner = (SELECT sluice.current_user_id('write:notes')));
CREATE POLICY admin ON notes.notes TO sluice_admin USING (true) WITH CHECK (true);
