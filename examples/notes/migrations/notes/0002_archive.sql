-- Notes can be put away.

SET LOCAL ROLE sluice_owner;

ALTER TABLE notes.notes ADD archived_at timestamptz;
DROP INDEX notes.notes_owner_created_at_idx;
CREATE INDEX notes_owner_created_at_idx ON notes.notes (owner, created_at) WHERE archived_at IS NULL;

-- security_invoker: the view shows what its reader may see, not what its owner may.
CREATE VIEW notes.current WITH (security_invoker) AS
SELECT id, owner, title, body, created_at FROM notes.notes WHERE archived_at IS NULL;
GRANT SELECT ON notes.current TO authenticated_users;
