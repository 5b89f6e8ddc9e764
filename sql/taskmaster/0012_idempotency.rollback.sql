SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.answer_request(text, text), taskmaster.claim_request(text, text);
SET LOCAL ROLE sluice_owner;
DROP TABLE taskmaster.idempotency_keys;
