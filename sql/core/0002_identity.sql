-- Who is asking: the keys that sign the claim in the setting sluice.identity, and the functions that verify it.

SET LOCAL ROLE sluice_owner;

-- HMAC (RFC 2104) starts its two hashes with the key XORed with 0x36… and 0x5c…: both are stored ready-made,
-- because the verifying functions must never hold a key in a variable.
CREATE TABLE sluice.signing_keys (
    kid text PRIMARY KEY CHECK (kid ~ '^[0-9a-z]{4}$'),
    kid_bytes bytea NOT NULL GENERATED ALWAYS AS (decode(kid, 'escape')) STORED,
    ipad bytea NOT NULL CHECK (octet_length(ipad) = 64),
    opad bytea NOT NULL CHECK (octet_length(opad) = 64),
    compare_key bytea NOT NULL CHECK (octet_length(compare_key) = 16),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    signed_until timestamptz
);
COMMENT ON TABLE sluice.signing_keys IS
    'Keys of the signed identity, by kid; the newest one that every host has replayed signs, all of them verify';
COMMENT ON COLUMN sluice.signing_keys.kid_bytes IS
    'kid as the claim carries it; without an index, so that one small page is simply scanned';
COMMENT ON COLUMN sluice.signing_keys.ipad IS 'key XOR 0x36…, 64 bytes';
COMMENT ON COLUMN sluice.signing_keys.opad IS 'key XOR 0x5c…, 64 bytes';
COMMENT ON COLUMN sluice.signing_keys.compare_key IS
    'keys the hashes that are compared instead of the macs, so that timing tells nothing; of no use to a signer';
COMMENT ON COLUMN sluice.signing_keys.signed_until IS
    'until when claims that proxies sign with it may hold; each proxy moves it on before it signs';
GRANT SELECT, INSERT, DELETE ON sluice.signing_keys TO sluice_definer;
GRANT SELECT, UPDATE (signed_until) ON sluice.signing_keys TO sluice_control;

GRANT CREATE ON SCHEMA sluice TO sluice_definer;
SET LOCAL ROLE sluice_definer;

CREATE FUNCTION sluice.hmac_pad(key bytea, pad text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $f$
    -- bit_send puts a length of four bytes before the bits.
    SELECT substring(bit_send(('x' || rpad(encode(key, 'hex'), 128, '0'))::bit(512)
                              # ('x' || repeat(pad, 64))::bit(512)) FROM 5)
$f$;
COMMENT ON FUNCTION sluice.hmac_pad(bytea, text) IS
    'Return an HMAC-SHA-256 key of at most 64 bytes, zero-filled and XORed with the hex byte pad (RFC 2104)';

CREATE FUNCTION sluice.create_signing_key() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    new_kid text;
BEGIN
    LOOP
        new_kid := substr(replace(gen_random_uuid()::text, '-', ''), 1, 4);
        -- A version 4 UUID has 122 random bits from the server's strong random source.
        INSERT INTO sluice.signing_keys (kid, ipad, opad, compare_key)
        SELECT new_kid, sluice.hmac_pad(secret, '36'), sluice.hmac_pad(secret, '5c'), uuid_send(gen_random_uuid())
        FROM (SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                            || uuid_send(gen_random_uuid())) AS secret OFFSET 0) AS random
        ON CONFLICT (kid) DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN new_kid;
END
$f$;
COMMENT ON FUNCTION sluice.create_signing_key() IS 'Add a random signing key and return its kid';

CREATE FUNCTION sluice.rotate_signing_key(at_once boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    new_kid text;
BEGIN
    IF NOT at_once AND (SELECT count(*) FROM sluice.signing_keys) > 1 THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'the last rotation of the signing keys is not over',
            HINT = 'The old key goes once no claim of it can be good; rotate at once if it is known to others.';
    END IF;
    new_kid := sluice.create_signing_key();
    IF at_once THEN
        DELETE FROM sluice.signing_keys WHERE kid <> new_kid;
    END IF;
    RETURN new_kid;
END
$f$;
COMMENT ON FUNCTION sluice.rotate_signing_key(boolean) IS
    'Add a signing key, for the proxies to change to without a gap, and return its kid; at_once deletes the others: '
    'until its proxy and replica have the new key, nobody is anybody';

CREATE FUNCTION sluice.retire_signing_key(old_kid text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
BEGIN
    -- A key that no proxy ever signed with may be about to: it gets an hour.
    DELETE FROM sluice.signing_keys
    WHERE kid = old_kid
      AND coalesce(signed_until, created_at + interval '1 hour') < now()
      AND created_at < (SELECT max(newer.created_at) FROM sluice.signing_keys newer
                        WHERE newer.signed_until IS NOT NULL);
    RETURN FOUND;
END
$f$;
COMMENT ON FUNCTION sluice.retire_signing_key(text) IS
    'Delete a signing key that no claim can be good by any more, while a newer one signs; false where that is not so';

CREATE FUNCTION sluice.decode_claim_field(field text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $f$
BEGIN
    RETURN convert_from(decode(translate(substr(field, 2), '-_', '+/')
                               || repeat('=', (5 - length(field) % 4) % 4), 'base64'), 'UTF8');
END
$f$;
COMMENT ON FUNCTION sluice.decode_claim_field(text) IS
    'Return the text of a claim''s field that is written as "=" and unpadded base64url; for verified claims only';

-- A claim is ASCII, without spaces between its parts:
--
--     mac (64 lower-case hex digits)  kid (4)  exp (10 decimal digits, Unix seconds)  |user|key id|permissions
--
-- mac is HMAC-SHA-256, under the key called kid, of everything that follows it, then "|", the backend's process
-- id in decimal, "|", and session_user. Permissions are separated by single spaces. A user with anything but
-- printable ASCII, with "|" or a backslash, or that starts with "=", is written as "=" and the unpadded base64url
-- of its UTF-8.
--
-- The check is one text in four functions, because a call of a common one would cost each of them a fifth more.
-- In it:
--   * the length is looked at first; nothing is cast or taken apart before the mac holds; CASE keeps the order;
--   * bytes of the key stand in the SELECT that reads them and nowhere else: a variable would be shown as a
--     constant by debug_print_plan;
--   * two keyed hashes are compared, not the macs;
--   * the text is taken as bytes in the database's own encoding: no conversion that could fail, and bytea is
--     sliced without counting characters;
--   * exp is compared with the transaction's start: the identity can't end in mid-transaction.
DO $do$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT * FROM (VALUES
            ('current_user_id()', 'text', 'NULL',
             $v$CASE WHEN get_byte(claim, 79) = 61
                     THEN sluice.decode_claim_field(split_part(encode(claim, 'escape'), '|', 2))
                     ELSE split_part(encode(claim, 'escape'), '|', 2) END$v$),
            ('current_user_id(permission text)', 'text', 'NULL',
             $v$CASE WHEN permission = ANY (string_to_array(split_part(encode(claim, 'escape'), '|', 4), ' ')) THEN
                CASE WHEN get_byte(claim, 79) = 61
                     THEN sluice.decode_claim_field(split_part(encode(claim, 'escape'), '|', 2))
                     ELSE split_part(encode(claim, 'escape'), '|', 2) END END$v$),
            ('current_key_id()', 'text', 'NULL',
             $v$split_part(encode(claim, 'escape'), '|', 3)$v$),
            ('has_permission(permission text)', 'boolean', 'false',
             $v$coalesce(permission = ANY (string_to_array(split_part(encode(claim, 'escape'), '|', 4), ' ')), false)$v$)
        ) AS functions (signature, result, otherwise, value)
    LOOP
        EXECUTE format($create$
CREATE FUNCTION sluice.%s RETURNS %s
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
AS $f$
DECLARE
    claim bytea := CASE WHEN octet_length(current_setting('sluice.identity', true)) BETWEEN 84 AND 8192 THEN
        convert_to(concat_ws('|', current_setting('sluice.identity', true), pg_backend_pid(), session_user),
                   getdatabaseencoding()) END;
    genuine boolean;
BEGIN
    SELECT sha256(k.compare_key || substring(claim, 1, 64))
         = sha256(k.compare_key
                  || encode(sha256(k.opad || sha256(k.ipad || substring(claim, 65))), 'hex')::bytea)
    INTO genuine
    FROM sluice.signing_keys k
    WHERE k.kid_bytes = substring(claim, 65, 4);
    RETURN CASE WHEN genuine THEN
        CASE WHEN to_timestamp(encode(substring(claim, 69, 10), 'escape')::float8) > now() THEN
            %s
        ELSE %s END
    ELSE %s END;
END
$f$$create$, made.signature, made.result, made.value, made.otherwise, made.otherwise);
    END LOOP;
END
$do$;
COMMENT ON FUNCTION sluice.current_user_id() IS
    'Return the user of the verified claim in sluice.identity, NULL without a claim that holds';
COMMENT ON FUNCTION sluice.current_user_id(text) IS
    'Return the user of the verified claim, NULL unless the claim holds the permission';
COMMENT ON FUNCTION sluice.current_key_id() IS
    'Return the API key''s id of the verified claim, NULL without a claim that holds';
COMMENT ON FUNCTION sluice.has_permission(text) IS
    'Tell whether the verified claim holds the permission; false without a claim that holds';

REVOKE ALL ON FUNCTION sluice.hmac_pad(bytea, text), sluice.create_signing_key(),
    sluice.rotate_signing_key(boolean), sluice.retire_signing_key(text), sluice.decode_claim_field(text), sluice.current_user_id(), sluice.current_user_id(text),
    sluice.current_key_id(), sluice.has_permission(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sluice.current_user_id(), sluice.current_user_id(text), sluice.current_key_id(),
    sluice.has_permission(text) TO authenticated_users;
-- Whoever reads these keys can sign as anybody: that the control login may exchange them adds nothing to it.
GRANT EXECUTE ON FUNCTION sluice.rotate_signing_key(boolean), sluice.retire_signing_key(text) TO sluice_control;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA sluice FROM sluice_definer;
