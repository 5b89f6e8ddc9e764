SET LOCAL ROLE sluice_owner;

DROP TABLE notes.shares, notes.notes;
DROP SCHEMA notes;
