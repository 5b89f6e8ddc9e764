DROP FUNCTION sluice.has_permission(text), sluice.current_key_id(), sluice.current_user_id(text),
    sluice.current_user_id(), sluice.decode_claim_field(text), sluice.retire_signing_key(text),
    sluice.rotate_signing_key(boolean), sluice.create_signing_key(),
    sluice.hmac_pad(bytea, text);
DROP TABLE sluice.signing_keys;
