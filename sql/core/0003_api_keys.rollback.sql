DROP FUNCTION public.rotate_api_key(text, interval), public.revoke_api_key(text),
    public.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz);
DROP FUNCTION sluice.rotate_api_key(text, interval), sluice.revoke_api_key(text),
    sluice.generate_api_key(text, text, jsonb, text, cidr[], integer, timestamptz), sluice.check_key_admin(),
    sluice.scram_verifier(text, bytea, integer);
DROP TABLE sluice.api_keys;
DROP FUNCTION sluice.announce_key();
