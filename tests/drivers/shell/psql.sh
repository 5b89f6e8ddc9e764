#!/usr/bin/env bash
# psql: scripts, its own cursors and pipelines, \copy, and Ctrl-C.
set -u
t=$DRIVER_TABLE
psql() { "$PSQL" -XAtq -v ON_ERROR_STOP=1 "$@"; }

# expected, got
equal() {
	[ "$1" = "$2" ] || { printf 'got %.200s, expected %.200s' "$2" "$1" >&2; return 1; }
}

noted() { psql -c "SELECT count(*) FROM (SELECT id FROM $t WHERE id IN ($1) FOR SHARE) AS found"; }

connect() { equal 1 "$(psql -c 'SELECT 1')"; }

types() {
	equal "2147483647|-9007199254740993|12345678901234567890.0987654321|Grüße, 世界 🐘|\\x00ff275c|2026-01-02 03:04:05.678901+00|{\"a\": [1, null]}|{1,2,NULL}|t|none" \
		"$(psql -P null=none <<-'SQL'
			SET timezone = 'UTC';
			SELECT $1::integer, $2::bigint, $3::numeric, $4::text, $5::bytea, $6::timestamptz, $7::jsonb, $8::integer[],
			$9::boolean, NULL::date
			\bind 2147483647 -9007199254740993 12345678901234567890.0987654321 'Grüße, 世界 🐘' '\\x00ff275c' '2026-01-02 03:04:05.678901Z' '{"a": [1, null]}' '{1,2,NULL}' true \g
		SQL
		)"
}

prepared() {
	equal "$(for n in $(seq 20); do echo $((n + 1)); echo "${n}x"; echo $((n + 2)); done)" "$(
		{
			printf 'SELECT $1::integer + 1 \\parse plus\nSELECT $1::text || '"'x'"' \\parse s\n'
			echo 'PREPARE plus_two (integer) AS SELECT $1 + 2;'
			for n in $(seq 20); do
				printf '\\bind_named plus %d \\g\n\\bind_named s %d \\g\nEXECUTE plus_two (%d);\n' "$n" "$n" "$n"
			done
			printf '\\close_prepared plus\nDEALLOCATE plus_two;\n'
		} | psql
	)"
}

commit() {
	psql -c BEGIN -c "INSERT INTO $t VALUES (100, 'kept')" -c COMMIT
	equal 1 "$(noted 100)"
}

rollback() {
	psql -c BEGIN -c "INSERT INTO $t VALUES (200, 'gone')" -c ROLLBACK
	equal 0 "$(noted 200)"
}

savepoint() {
	# psql makes a savepoint for each statement itself.
	psql -v ON_ERROR_STOP=0 2>/dev/null <<-SQL
		\\set ON_ERROR_ROLLBACK on
		BEGIN;
		INSERT INTO $t VALUES (300);
		INSERT INTO $t VALUES (300);
		INSERT INTO $t VALUES (301);
		COMMIT;
	SQL
	equal 2 "$(noted 300,301)"
}

error() {
	equal "22012 42601 1" "$(echo $(psql -v ON_ERROR_STOP=0 2>/dev/null <<-'SQL'
		SELECT 1/0;
		\echo :LAST_ERROR_SQLSTATE
		SELEC 1;
		\echo :LAST_ERROR_SQLSTATE
		SELECT 1;
	SQL
	))"
}

error_in_transaction() {
	equal "22012 25P02 1" "$(echo $(psql -v ON_ERROR_STOP=0 2>/dev/null <<-'SQL'
		BEGIN;
		SELECT 1/0;
		\echo :LAST_ERROR_SQLSTATE
		SELECT 1;
		\echo :LAST_ERROR_SQLSTATE
		ROLLBACK;
		SELECT 1;
	SQL
	))"
}

copy_in() {
	for n in $(seq 1000001 1010000); do printf '%d\tGrüße, 世界\n' "$n"; done |
		psql -c "\\copy $t (id, note) FROM STDIN" || return
	equal 10000 "$(psql -c "SELECT count(*) FROM (SELECT id FROM $t WHERE id > 1000000 FOR SHARE) AS found")"
}

copy_out() { equal 60000 "$(psql -c '\copy (SELECT generate_series(10000, 19999)) TO STDOUT' | wc -c)"; }

cursor() {
	equal 50005000 "$(psql -v FETCH_COUNT=100 -c 'SELECT generate_series(1, 10000)' | awk '{ sum += $1 } END { print sum }')"
}

cancel() {
	local said
	# Job control gives psql its own group, and Ctrl-C its usual meaning.
	# A script ends there: that the session goes on is for the other drivers to see.
	said=$(set -m; "$PSQL" -XAt -v VERBOSITY=sqlstate -c 'SELECT pg_sleep(30)' 2>&1 & pid=$!
		sleep 1; kill -INT $pid; wait $pid)
	equal "Cancel request sent ERROR: 57014" "$(echo $said)"
}

listen() {
	equal "0 1 2" "$(echo $(psql <<-'SQL' | sed -n 's/.*with payload "\([0-9]\)".*/\1/p'
		LISTEN psql_news;
		SELECT pg_notify('psql_news', n::text) FROM generate_series(0, 2) AS n;
		SELECT 1;
	SQL
	))"
}

big_row() {
	equal 4194304 "$({
		echo "SELECT length('$(printf '0123456789abcdef%.0s' $(seq 262144))');"
	} | psql)" || return
	equal 4194305 "$(psql -c "SELECT repeat('0123456789abcdef', 262144)" | wc -c)"
}

batch() {
	equal "$(seq 100)" "$({
		echo '\startpipeline'
		for n in $(seq 100); do printf 'SELECT $1::integer \\bind %d \\sendpipeline\n' "$n"; done
		echo '\endpipeline'
		printf 'INSERT INTO %s VALUES (500);\n' "$t"
	} | psql)"
}

settings() {
	equal "$(for _ in $(seq 20); do echo 7MB; done)" "$(
		{ echo "SET work_mem = '7MB';"; for _ in $(seq 20); do echo 'SHOW work_mem;'; done; } | psql
	)" || return
	[ "$(psql -c 'SHOW work_mem')" != 7MB ]
}

many_connections() {
	local before each workers=""
	before=$(psql -c "SELECT number FROM $t WHERE id = 0 FOR SHARE")
	for each in $(seq 8); do
		for _ in $(seq 10); do echo "BEGIN; UPDATE $t SET number = number + 1 WHERE id = 0; COMMIT;"; done | psql &
		workers="$workers $!"
	done
	for each in $workers; do wait "$each" || return; done
	equal $((before + 80)) "$(psql -c "SELECT number FROM $t WHERE id = 0 FOR SHARE")"
}

replica() { equal t "$(psql -c 'SELECT pg_is_in_recovery()')"; }

read_your_write() {
	equal "$(seq 700 749)" "$(
		for n in $(seq 700 749); do echo "INSERT INTO $t VALUES ($n); SELECT id FROM $t WHERE id = $n;"; done | psql
	)"
}

printf '{"version": "%s"}\n' "$("$PSQL" -V | grep -o '[0-9.]*$')"
for check in $DRIVER_CHECKS; do
	if said=$($check 2>&1 >/dev/null); then ok=true; else ok=false; fi
	said=$(printf '%.600s' "$said" | tr -d '\000-\037"\\')
	printf '{"check": "%s", "ok": %s, "detail": "%s"}\n' "$check" "$ok" "$said"
done
