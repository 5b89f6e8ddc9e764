SET LOCAL ROLE sluice_owner;

DROP VIEW notes.current;
DROP INDEX notes.notes_owner_created_at_idx;
ALTER TABLE notes.notes DROP archived_at;
CREATE INDEX notes_owner_created_at_idx ON notes.notes (owner, created_at);
