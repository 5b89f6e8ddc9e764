-- What the HTTP API answered to requests with an Idempotency-Key, so that a repeated one makes nothing twice.

SET LOCAL ROLE sluice_owner;

CREATE TABLE taskmaster.idempotency_keys (
    id uuid PRIMARY KEY DEFAULT sluice.uuid7(),
    user_id text NOT NULL CHECK (length(user_id) BETWEEN 1 AND 320),
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash text NOT NULL CHECK (request_hash ~ '^[0-9a-f]{64}$'),
    response text,
    expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, key)
);
CREATE INDEX idempotency_keys_expires_at_idx ON taskmaster.idempotency_keys (expires_at);
COMMENT ON TABLE taskmaster.idempotency_keys IS 'Requests that are answered once; reached by claim_request and answer_request';
COMMENT ON COLUMN taskmaster.idempotency_keys.request_hash IS 'SHA-256 of what was asked, in hexadecimal digits';
COMMENT ON COLUMN taskmaster.idempotency_keys.response IS 'NULL until the request''s transaction has its answer';

ALTER TABLE taskmaster.idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE taskmaster.idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY admin ON taskmaster.idempotency_keys TO sluice_admin USING (true) WITH CHECK (true);
CREATE POLICY definer ON taskmaster.idempotency_keys TO sluice_definer USING (true) WITH CHECK (true);
GRANT SELECT, DELETE ON taskmaster.idempotency_keys TO sluice_admin;
GRANT SELECT, INSERT, UPDATE, DELETE ON taskmaster.idempotency_keys TO sluice_definer;
CREATE TRIGGER touch BEFORE UPDATE ON taskmaster.idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION taskmaster.touch();

GRANT CREATE ON SCHEMA taskmaster TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION taskmaster.claim_request(key text, request_hash text)
RETURNS TABLE (outcome text, response text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
#variable_conflict use_column
DECLARE
    me text := sluice.current_user_id();
    held taskmaster.idempotency_keys;
BEGIN
    IF me IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'requests are claimed by the user of an API key';
    END IF;
    DELETE FROM taskmaster.idempotency_keys k
    WHERE k.user_id = me AND k.key = claim_request.key AND k.expires_at <= now();
    -- Others' go by the way, a few at a time, so that nothing has to clean up.
    DELETE FROM taskmaster.idempotency_keys k WHERE k.id = ANY (ARRAY(
        SELECT e.id FROM taskmaster.idempotency_keys e WHERE e.expires_at <= now()
        ORDER BY e.expires_at LIMIT 20 FOR UPDATE SKIP LOCKED));
    -- Where another transaction has just claimed it, this waits for its end.
    INSERT INTO taskmaster.idempotency_keys (user_id, key, request_hash)
    VALUES (me, claim_request.key, claim_request.request_hash)
    ON CONFLICT ON CONSTRAINT idempotency_keys_user_id_key_key DO NOTHING;
    IF FOUND THEN
        RETURN QUERY SELECT 'new', NULL::text;
        RETURN;
    END IF;
    SELECT * INTO held FROM taskmaster.idempotency_keys k WHERE k.user_id = me AND k.key = claim_request.key;
    IF held.id IS NULL THEN
        RAISE serialization_failure USING MESSAGE = 'the request was forgotten meanwhile';
    END IF;
    RETURN QUERY SELECT CASE WHEN held.request_hash = claim_request.request_hash THEN 'answered' ELSE 'differs' END,
                        held.response;
END
$f$;
COMMENT ON FUNCTION taskmaster.claim_request(text, text) IS
    'Take a request of the key''s user on for 24 hours: new, answered with the response, or differs from what was asked '
    'with this key before; waits for a transaction that has just claimed it';

CREATE FUNCTION taskmaster.answer_request(key text, response text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    UPDATE taskmaster.idempotency_keys k SET response = answer_request.response
    WHERE k.user_id = sluice.current_user_id() AND k.key = answer_request.key AND k.response IS NULL;
END
$f$;
COMMENT ON FUNCTION taskmaster.answer_request(text, text) IS
    'Keep the answer to a request that claim_request took on in this transaction';

REVOKE ALL ON FUNCTION taskmaster.claim_request(text, text), taskmaster.answer_request(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION taskmaster.claim_request(text, text), taskmaster.answer_request(text, text)
    TO sluice_readwrite, sluice_admin;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA taskmaster FROM sluice_definer;
