DROP FUNCTION sluice.has_permission(text), sluice.current_key_id(), sluice.current_user_id(text),
    sluice.current_user_id(), sluice.decode_claim_field(text), sluice.create_signing_key(),
    sluice.hmac_pad(bytea, text);
DROP TABLE sluice.signing_keys;
