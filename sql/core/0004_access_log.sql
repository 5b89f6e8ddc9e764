-- Every access, in partitions of a day. The proxy COPYs rows in batches: one for each statement, so what an
-- insert costs counts more than what a search costs.

SET LOCAL ROLE sluice_owner;

-- The order of the columns is that of the proxy's binary COPY rows.
CREATE TABLE sluice.api_access_logs (
    id uuid NOT NULL,
    at timestamptz NOT NULL,
    event text NOT NULL,
    key_id text,
    user_id text,
    client_addr inet,
    application_name text,
    database text,
    pool text,
    host text,
    target text,
    reason text,
    intent text,
    fingerprint text,
    statement text,
    rows bigint,
    bytes_in bigint,
    bytes_out bigint,
    queued_us bigint,
    first_byte_us bigint,
    duration_us bigint,
    in_transaction boolean,
    pinned boolean,
    sqlstate text,
    code text,
    traceparent text,
    PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
CREATE INDEX api_access_logs_at_idx ON sluice.api_access_logs USING brin (at);
COMMENT ON TABLE sluice.api_access_logs IS
    'What keys did. No row-level security, because COPY FROM refuses it: clients have no grant, and read sluice.access_log';
COMMENT ON COLUMN sluice.api_access_logs.id IS 'UUID version 7, made by the proxy';
COMMENT ON COLUMN sluice.api_access_logs.at IS 'the millisecond in id';
COMMENT ON COLUMN sluice.api_access_logs.event IS 'statement, login, login_failed, denied, revoked, cancel or admin';
GRANT INSERT ON sluice.api_access_logs TO sluice_control;
GRANT SELECT ON sluice.api_access_logs TO sluice_definer;

CREATE FUNCTION sluice.ensure_partitions(days_ahead integer DEFAULT 7, days_back integer DEFAULT 1) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET lock_timeout = '5s'
AS $f$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    parent record;
    grant_made record;
    day date;
    part text;
    made integer := 0;
BEGIN
    IF days_ahead NOT BETWEEN 0 AND 366 OR days_back NOT BETWEEN 0 AND 366 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'partitions are made for at most 366 days each way';
    END IF;
    FOR parent IN
        SELECT c.oid, n.nspname AS schema, c.relname AS name
        FROM pg_partitioned_table p
        JOIN pg_class c ON c.oid = p.partrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
        WHERE p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'timestamptz'::regtype
          AND c.relowner = 'sluice_owner'::regrole
        ORDER BY 2, 3
    LOOP
        FOR day IN SELECT today + i FROM generate_series(-days_back, days_ahead) AS i LOOP
            part := format('%I.%I', parent.schema, parent.name || to_char(day, '"_"YYYYMMDD'));
            CONTINUE WHEN to_regclass(part) IS NOT NULL;
            -- One at a time: the lock that ATTACH takes anyway, which neither readers nor COPY wait for.
            EXECUTE format('LOCK TABLE ONLY %I.%I IN SHARE UPDATE EXCLUSIVE MODE', parent.schema, parent.name);
            CONTINUE WHEN to_regclass(part) IS NOT NULL;
            EXECUTE format('CREATE TABLE %s (LIKE %I.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED)',
                           part, parent.schema, parent.name);
            -- The parent's grants and policies decide; the partition itself shows nothing to anybody.
            FOR grant_made IN
                SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END AS grantee
                FROM pg_class c, aclexplode(c.relacl) g
                WHERE c.oid = to_regclass(part) AND g.grantee <> c.relowner
            LOOP
                EXECUTE format('REVOKE ALL ON %s FROM %s', part, grant_made.grantee);
            END LOOP;
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', part);
            EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', part);
            EXECUTE format('ALTER TABLE %I.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                           parent.schema, parent.name, part,
                           to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00',
                           to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$f$;
COMMENT ON FUNCTION sluice.ensure_partitions(integer, integer) IS
    'Make the missing daily partitions (UTC) of every table of sluice_owner that is partitioned by a timestamptz; '
    'return how many. Owned by sluice_owner, because only a table''s owner may attach partitions';

CREATE FUNCTION sluice.cleanup_old_logs(days integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = notice
SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
SET lock_timeout = '5s'
AS $f$
DECLARE
    oldest text := 'api_access_logs' || to_char((now() AT TIME ZONE 'UTC')::date - days, '"_"YYYYMMDD');
    part record;
    dropped integer := 0;
BEGIN
    IF days IS NULL OR days < 1 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'logs are kept for one day at least';
    END IF;
    FOR part IN
        SELECT c.oid::regclass AS name
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'sluice.api_access_logs'::regclass
          AND c.relname ~ '^api_access_logs_[0-9]{8}$' AND c.relname < oldest
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %s', part.name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$f$;
COMMENT ON FUNCTION sluice.cleanup_old_logs(integer) IS
    'Drop the partitions of sluice.api_access_logs that ended at least so many days ago; return how many';

CREATE FUNCTION sluice.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
AS $f$
    -- A version 4 UUID whose first 48 bits become the time; then 0100 becomes 0111 (RFC 9562, section 5.7).
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$f$;
COMMENT ON FUNCTION sluice.uuid7() IS 'Return a UUID version 7: ordered by its millisecond';

REVOKE ALL ON FUNCTION sluice.ensure_partitions(integer, integer), sluice.cleanup_old_logs(integer), sluice.uuid7()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sluice.ensure_partitions(integer, integer), sluice.cleanup_old_logs(integer)
    TO sluice_control;
GRANT EXECUTE ON FUNCTION sluice.uuid7() TO sluice_control, sluice_definer, authenticated_users;

SELECT sluice.ensure_partitions();

GRANT CREATE ON SCHEMA sluice TO sluice_definer;
SET LOCAL ROLE sluice_definer;

-- The barrier keeps a client's own functions away from rows that the condition is about to hide.
CREATE VIEW sluice.access_log WITH (security_barrier) AS
SELECT id, at, event, key_id, user_id, client_addr, application_name, database, pool, host, target, reason, intent,
       fingerprint, statement, rows, bytes_in, bytes_out, queued_us, first_byte_us, duration_us, in_transaction,
       pinned, sqlstate, code, traceparent
FROM sluice.api_access_logs
WHERE user_id = (SELECT sluice.current_user_id())
   OR (SELECT pg_catalog.pg_has_role(session_user, 'sluice_admin', 'USAGE'));
COMMENT ON VIEW sluice.access_log IS 'The access log: one''s own rows; all of them for logins of sluice_admin';
GRANT SELECT ON sluice.access_log TO authenticated_users;

SET LOCAL ROLE sluice_owner;
REVOKE CREATE ON SCHEMA sluice FROM sluice_definer;
