-- API keys. A key is ctm_<12 characters>_<32 characters>: its id is everything before the second underscore and
-- is public (it is the client's user name), the rest is the secret. The table holds no secret, only what proves it.

SET LOCAL ROLE sluice_owner;

CREATE TABLE sluice.api_keys (
    id text PRIMARY KEY CHECK (id ~ '^ctm_[0-9A-Za-z]{12}$'),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    user_id text NOT NULL CONSTRAINT api_keys_user_id_check
        CHECK (length(user_id) BETWEEN 1 AND 320 AND strpos(user_id, '|') = 0),
    permissions jsonb NOT NULL CONSTRAINT api_keys_permissions_check
        CHECK (jsonb_typeof(permissions) = 'array'
               AND length(permissions::text) <= 4096
               AND NOT permissions @? 'strict $[*] ? (@.type() != "string" || !(@ like_regex "^[0-9A-Za-z_.*-]+(:[0-9A-Za-z_.*-]+)?$"))'),
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    scram_verifier text NOT NULL CHECK (starts_with(scram_verifier, 'SCRAM-SHA-256$')),
    default_pool text CHECK (default_pool <> ''),
    allowed_addresses cidr[] CHECK (array_position(allowed_addresses, NULL) IS NULL),
    rate_limit_per_minute integer CHECK (rate_limit_per_minute > 0),
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    use_count bigint NOT NULL DEFAULT 0,
    rotated_from text REFERENCES sluice.api_keys ON DELETE SET NULL
) WITH (fillfactor = 70);  -- last_used_at and use_count change often, and no index has them: such rows stay in their page
CREATE INDEX api_keys_user_id_idx ON sluice.api_keys (user_id);
CREATE INDEX api_keys_rotated_from_idx ON sluice.api_keys (rotated_from) WHERE rotated_from IS NOT NULL;
COMMENT ON TABLE sluice.api_keys IS 'API keys; their users see their own without what proves the secret';
COMMENT ON COLUMN sluice.api_keys.secret_sha256 IS 'SHA-256 of the secret: the 32 characters after ctm_<id>_';
COMMENT ON COLUMN sluice.api_keys.scram_verifier IS
    'SCRAM-SHA-256 verifier, as pg_authid has them, of the whole key: that is the password which a client sends';
COMMENT ON COLUMN sluice.api_keys.default_pool IS 'pool of the configuration that the key''s sessions use; NULL: routed';
COMMENT ON COLUMN sluice.api_keys.allowed_addresses IS 'networks from which the key may log in; NULL or empty: any';
COMMENT ON COLUMN sluice.api_keys.rate_limit_per_minute IS 'statements per minute; NULL: no limit';
COMMENT ON COLUMN sluice.api_keys.last_used_at IS 'written back by the proxy in batches, as is use_count';
COMMENT ON COLUMN sluice.api_keys.rotated_from IS 'the key that this one replaces';

ALTER TABLE sluice.api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE sluice.api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY definer ON sluice.api_keys TO sluice_definer USING (true) WITH CHECK (true);
CREATE POLICY control_reads ON sluice.api_keys FOR SELECT TO sluice_control USING (true);
CREATE POLICY control_counts ON sluice.api_keys FOR UPDATE TO sluice_control USING (true) WITH CHECK (true);
CREATE POLICY own ON sluice.api_keys FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (user_id = (SELECT sluice.current_user_id()));
CREATE POLICY admin ON sluice.api_keys FOR SELECT TO sluice_admin USING (true);

GRANT SELECT, INSERT, UPDATE ON sluice.api_keys TO sluice_definer;
GRANT SELECT, UPDATE (last_used_at, use_count) ON sluice.api_keys TO sluice_control;
GRANT SELECT (id, name, user_id, permissions, default_pool, allowed_addresses, rate_limit_per_minute, expires_at,
              revoked_at, created_at, last_used_at, use_count, rotated_from)
    ON sluice.api_keys TO authenticated_users;

CREATE FUNCTION sluice.announce_key() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
    PERFORM pg_notify('sluice_keys', CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END);
    RETURN NULL;
END
$f$;
COMMENT ON FUNCTION sluice.announce_key() IS 'Send the id of a changed key on the channel sluice_keys';
REVOKE ALL ON FUNCTION sluice.announce_key() FROM PUBLIC;

CREATE TRIGGER announce AFTER INSERT OR DELETE ON sluice.api_keys
    FOR EACH ROW EXECUTE FUNCTION sluice.announce_key();
-- Not for last_used_at and use_count: the proxy itself writes those, for many keys at a time.
CREATE TRIGGER announce_change
    AFTER UPDATE OF user_id, permissions, secret_sha256, scram_verifier, default_pool, allowed_addresses,
                    rate_limit_per_minute, expires_at, revoked_at
    ON sluice.api_keys FOR EACH ROW EXECUTE FUNCTION sluice.announce_key();

GRANT CREATE ON SCHEMA sluice TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION sluice.scram_verifier(password text, salt bytea, iterations integer DEFAULT 4096) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $f$
DECLARE
    key bytea := convert_to(password, 'UTF8');
    ipad bytea := sluice.hmac_pad(key, '36');
    opad bytea := sluice.hmac_pad(key, '5c');
    block bytea := sha256(opad || sha256(ipad || salt || decode('00000001', 'hex')));
    sum bit(256) := ('x' || encode(block, 'hex'))::bit(256);
    client_key bytea;
    server_key bytea;
BEGIN
    -- PBKDF2 (RFC 8018) with one block of output; PostgreSQL can XOR bit strings but not bytea.
    FOR i IN 2 .. iterations LOOP
        block := sha256(opad || sha256(ipad || block));
        sum := sum # ('x' || encode(block, 'hex'))::bit(256);
    END LOOP;
    key := substring(bit_send(sum) FROM 5);
    ipad := sluice.hmac_pad(key, '36');
    opad := sluice.hmac_pad(key, '5c');
    client_key := sha256(opad || sha256(ipad || convert_to('Client Key', 'UTF8')));
    server_key := sha256(opad || sha256(ipad || convert_to('Server Key', 'UTF8')));
    RETURN format('SCRAM-SHA-256$%s:%s$%s:%s', iterations, encode(salt, 'base64'),
                  encode(sha256(client_key), 'base64'), encode(server_key, 'base64'));
END
$f$;
COMMENT ON FUNCTION sluice.scram_verifier(text, bytea, integer) IS
    'Return the SCRAM-SHA-256 verifier (RFC 5802, RFC 7677) of an ASCII password of at most 64 characters; some 20 ms';

CREATE FUNCTION sluice.check_key_admin() RETURNS void
LANGUAGE plpgsql STABLE
AS $f$
BEGIN
    -- The operator's own logins may do what they like. Everybody else has to prove who is asking.
    IF pg_has_role(session_user, 'sluice_control', 'MEMBER') THEN
        RETURN;
    END IF;
    IF NOT sluice.has_permission('admin') THEN
        RAISE insufficient_privilege USING
            MESSAGE = 'permission denied to manage API keys',
            DETAIL = 'INSUFFICIENT_PERMISSIONS',
            HINT = 'Use a key that holds the permission admin.';
    END IF;
END
$f$;
COMMENT ON FUNCTION sluice.check_key_admin() IS
    'Raise 42501 unless the caller is the control login, a superuser or a verified claim with admin';

CREATE FUNCTION sluice.generate_api_key(name text, user_id text, permissions jsonb,
    default_pool text DEFAULT NULL, allowed_addresses cidr[] DEFAULT NULL,
    rate_limit_per_minute integer DEFAULT NULL, expires_at timestamptz DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
#variable_conflict error
DECLARE
    new_id text;
    secret text;
BEGIN
    PERFORM sluice.check_key_admin();
    IF generate_api_key.expires_at <= now() THEN
        RAISE invalid_parameter_value USING MESSAGE = 'expires_at lies in the past';
    END IF;
    -- Base64 without its two odd characters: 32 characters of just under 6 bits.
    secret := translate(substr(encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                                             || uuid_send(gen_random_uuid())), 'base64'), 1, 32), '+/', 'ax');
    LOOP
        new_id := 'ctm_' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 12);
        INSERT INTO sluice.api_keys (id, name, user_id, permissions, secret_sha256, scram_verifier, default_pool,
                                     allowed_addresses, rate_limit_per_minute, expires_at)
        VALUES (new_id, generate_api_key.name, generate_api_key.user_id, generate_api_key.permissions,
                sha256(convert_to(secret, 'UTF8')),
                sluice.scram_verifier(new_id || '_' || secret, uuid_send(gen_random_uuid())),
                generate_api_key.default_pool, generate_api_key.allowed_addresses,
                generate_api_key.rate_limit_per_minute, generate_api_key.expires_at)
        ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN jsonb_build_object('id', new_id, 'api_key', new_id || '_' || secret, 'name', generate_api_key.name,
        'user_id', generate_api_key.user_id, 'permissions', generate_api_key.permissions,
        'default_pool', generate_api_key.default_pool, 'allowed_addresses', generate_api_key.allowed_addresses,
        'rate_limit_per_minute', generate_api_key.rate_limit_per_minute,
        'expires_at', generate_api_key.expires_at);
END
$f$;
COMMENT ON FUNCTION sluice.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz) IS
    'Make a key and return it as JSON; api_key in it can''t be shown again. Needs the permission admin, which holds all others';

CREATE FUNCTION sluice.revoke_api_key(key_id text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    PERFORM sluice.check_key_admin();
    UPDATE sluice.api_keys SET revoked_at = now() WHERE id = key_id AND revoked_at IS NULL;
    RETURN FOUND;
END
$f$;
COMMENT ON FUNCTION sluice.revoke_api_key(text) IS
    'End a key at once, sessions included; false if there is no such key or it was revoked before. Needs admin';

CREATE FUNCTION sluice.rotate_api_key(key_id text, grace interval DEFAULT '1 day') RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    old sluice.api_keys;
    made jsonb;
    ends timestamptz;
BEGIN
    PERFORM sluice.check_key_admin();
    IF grace IS NULL OR grace < interval '0' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'grace must not be negative';
    END IF;
    SELECT * INTO old FROM sluice.api_keys WHERE id = key_id FOR UPDATE;
    IF old.id IS NULL OR old.revoked_at IS NOT NULL OR old.expires_at <= now() THEN
        RAISE no_data_found USING MESSAGE = format('there is no valid API key %s', key_id);
    END IF;
    IF EXISTS (SELECT FROM sluice.api_keys WHERE rotated_from = key_id AND revoked_at IS NULL) THEN
        -- Its end is that of its grace: nobody knows any more how long it was meant to live.
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = format('API key %s was rotated before', key_id), HINT = 'Rotate the key that replaces it.';
    END IF;
    -- The new key lives as long as the old one was meant to.
    made := sluice.generate_api_key(old.name, old.user_id, old.permissions, old.default_pool, old.allowed_addresses,
                                    old.rate_limit_per_minute, now() + (old.expires_at - old.created_at));
    ends := least(old.expires_at, now() + grace);
    UPDATE sluice.api_keys SET rotated_from = key_id WHERE id = made ->> 'id';
    UPDATE sluice.api_keys SET expires_at = ends WHERE id = key_id;
    RETURN made || jsonb_build_object('rotated_from', key_id, 'old_key_expires_at', ends);
END
$f$;
COMMENT ON FUNCTION sluice.rotate_api_key(text, interval) IS
    'Make a key like key_id and return it as generate_api_key does; the old one ends after grace. Needs admin';

REVOKE ALL ON FUNCTION sluice.scram_verifier(text, bytea, integer), sluice.check_key_admin(),
    sluice.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz), sluice.revoke_api_key(text),
    sluice.rotate_api_key(text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sluice.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz),
    sluice.revoke_api_key(text), sluice.rotate_api_key(text, interval) TO sluice_control, sluice_admin;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA sluice FROM sluice_definer;
RESET ROLE;

-- Under these names without a schema, because the proxy opens its connections with the search_path public: an
-- administrator types SELECT generate_api_key(…). They run as their caller and add no right.
CREATE FUNCTION public.generate_api_key(name text, user_id text, permissions jsonb,
    default_pool text DEFAULT NULL, allowed_addresses cidr[] DEFAULT NULL,
    rate_limit_per_minute integer DEFAULT NULL, expires_at timestamptz DEFAULT NULL) RETURNS jsonb
LANGUAGE sql VOLATILE
AS 'SELECT sluice.generate_api_key($1, $2, $3, $4, $5, $6, $7)';
CREATE FUNCTION public.revoke_api_key(key_id text) RETURNS boolean
LANGUAGE sql VOLATILE
AS 'SELECT sluice.revoke_api_key($1)';
CREATE FUNCTION public.rotate_api_key(key_id text, grace interval DEFAULT '1 day') RETURNS jsonb
LANGUAGE sql VOLATILE
AS 'SELECT sluice.rotate_api_key($1, $2)';
COMMENT ON FUNCTION public.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz) IS
    'sluice.generate_api_key';
COMMENT ON FUNCTION public.revoke_api_key(text) IS 'sluice.revoke_api_key';
COMMENT ON FUNCTION public.rotate_api_key(text, interval) IS 'sluice.rotate_api_key';
REVOKE ALL ON FUNCTION public.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz),
    public.revoke_api_key(text), public.rotate_api_key(text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz),
    public.revoke_api_key(text), public.rotate_api_key(text, interval) TO sluice_control, sluice_admin;
