"""The tour: what pgsluice promises, each shown by a client and checked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from rich.console import Console

from proxy.demo.stage import ALICE, BOB, DATABASE, HOST, ApiKey, Stage, psql_program

_DEADLINE: Final = 20.0
_POLL: Final = 0.05
_OWNERS: Final = "SELECT DISTINCT owner FROM notes"
_REFUSED: Final = "42501 INSUFFICIENT_PERMISSIONS"

# mac, kid, expiry, user, key, permissions: everything right but the signature, which needs the key.
_FORGED: Final = "0" * 64 + "aaaa" + "9999999999" + f"|{BOB}|ctm_000000000000|read:tasks write:tasks"
_BREAKAGES: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, subprocess.TimeoutExpired)
_SET: Final = f"set_config(''sluice.identity'', ''{_FORGED}'', false)"


class Tour:
    """Runs the steps one after the other, prints what was run and what came back, keeps the score."""

    def __init__(self, stage: Stage, console: Console) -> None:
        self._stage = stage
        self._console = console
        # What was checked, step by step: its title, what was expected, and whether it held.
        self.checks: list[tuple[str, str, bool]] = []
        self._title = ""
        self._psql = psql_program()

    def passes(self) -> bool:
        """Give the whole tour; tell whether every check held."""
        started = time.monotonic()
        steps: Sequence[tuple[str, Callable[[], None]]] = (
            ("Reads go to the replica, writes to the primary", self._routing),
            ("Row-level security: each key sees its user's rows", self._isolation),
            ("An identity can't be forged", self._forgery),
            ("A read-only key can't write", self._denied_write),
            ("A wrong key is turned away", self._wrong_key),
            ("A revoked key's open session is closed", self._revocation),
            ("Every access is in the log", self._access_log),
            ("Metrics and health", self._metrics),
        )
        for number, (title, step) in enumerate(steps, 1):
            self._title = title
            self._console.print(f"\n{number}. {title}", style="bold")
            try:
                step()
            except _BREAKAGES as problem:
                self._check(False, f"{type(problem).__name__}: {problem}")
        seconds = time.monotonic() - started
        failed = sum(not holds for _, _, holds in self.checks)
        if failed:
            log = self._stage.log.read_text(errors="replace")[-4000:]
            told = f"\n{failed} checks failed; the proxy's log ends with\n{log}"
            self._console.print(told, style="red", soft_wrap=True)
        else:
            self._console.print(f"\n✓ all of it holds ({seconds:.1f} s)", style="bold green")
        return not failed

    def _routing(self) -> None:
        alice = self._stage.keys["alice"]
        cluster = self._stage.cluster
        replicas = {str(replica.port) for replica in cluster.replicas}
        where = "pg_is_in_recovery(), inet_server_port()"
        said = self._run_psql(alice, f"SELECT {where}")
        recovery, _, port = said.partition("|")
        self._check(recovery == "t" and port in replicas, "the SELECT was served by the replica")
        said = self._run_psql(alice, f"INSERT INTO notes (body) VALUES ('by psql') RETURNING {where}")
        self._check(said.startswith(f"f|{cluster.primary.port}"), "the INSERT landed on the primary")
        said = self._run_psql(
            alice,
            f"WITH a AS (INSERT INTO notes (body) VALUES ('by a CTE') RETURNING 1) SELECT {where} FROM a",
        )
        self._check(said == f"f|{cluster.primary.port}", "so did an INSERT inside a SELECT")

    def _isolation(self) -> None:
        owners = "SELECT owner, count(*) FROM notes GROUP BY owner ORDER BY owner"
        for name, user in (("alice", ALICE), ("bob", BOB), ("alice, read-only", ALICE)):
            said = self._run_psql(self._stage.keys[name], owners)
            self._check(said.startswith(f"{user}|") and "\n" not in said, f"{name}: rows of {user} alone")
        said = self._run_psql(
            self._stage.keys["bob"], "UPDATE notes SET body = 'mine now' WHERE owner LIKE 'alice%'"
        )
        self._check(said == "UPDATE 0", "bob can't change what he doesn't see")
        said = self._run_psql(self._stage.keys["admin"], owners)
        self._check(ALICE in said and BOB in said, "the admin key's own pool sees both")

    def _forgery(self) -> None:
        asyncio.run(self._forge_through_the_proxy())
        asyncio.run(self._forge_past_the_proxy())

    async def _forge_through_the_proxy(self) -> None:
        attempts = (
            f"SET sluice.identity = '{_FORGED}'",
            f"SELECT set_config('sluice.identity', '{_FORGED}', false)",
            f"DO $$ BEGIN PERFORM set_config('sluice.identity', '{_FORGED}', false); END $$",
            f"SELECT query_to_xml('SELECT {_SET}', true, true, '')",
            "SET ROLE sluice_admin",
        )
        async with self._connected(self._stage.keys["alice"]) as connection:
            for attempt in attempts:
                answer = await self._ask(connection, "alice", attempt)
                owners = {str(row["owner"]) for row in await _rows(connection, _OWNERS)}
                refused = answer.startswith(("42501", "0A000"))
                ending = (
                    "refused" if refused else f"it ran, and shows {', '.join(sorted(owners)) or 'no row'}"
                )
                self._check(owners <= {ALICE}, ending)

    async def _forge_past_the_proxy(self) -> None:
        """Try what a client could do who got hold of a pool's password: the signature is the lock."""
        async with self._connected(self._stage.keys["bob"]) as bob:
            claim = str(await bob.fetchval("SELECT current_setting('sluice.identity', true)"))
        port = self._stage.cluster.primary.port
        connection = await asyncpg.connect(
            host=HOST, port=port, user="app_rw", password=self._stage.passwords["app_rw"], database=DATABASE
        )
        try:
            for kind, value in (
                ("a made-up claim", _FORGED),
                ("bob's own claim, of another connection", claim),
            ):
                await connection.execute("SELECT set_config('sluice.identity', $1, false)", value)
                self._told(f"app_rw, straight at PostgreSQL: set_config('sluice.identity', {kind})", "done")
                rows = await _rows(connection, _OWNERS)
                self._check(bool(claim) and not rows, f"{kind} shows no row")
        finally:
            await connection.close()

    def _denied_write(self) -> None:
        asyncio.run(self._deny(self._stage.keys["alice, read-only"]))

    async def _deny(self, key: ApiKey) -> None:
        async with self._connected(key) as connection:
            for statement in ("INSERT INTO notes (body) VALUES ('no')", "CREATE TABLE mine (id integer)"):
                answer = await self._ask(connection, "alice, read-only", statement)
                self._check(answer.startswith(_REFUSED), "42501, and DETAIL carries the code")
            count = await connection.fetchval("SELECT count(*) FROM notes")
            self._check(count > 0, "and the session goes on reading")

    def _wrong_key(self) -> None:
        alice = self._stage.keys["alice"]
        wrong = ApiKey(alice.id, alice.secret[:-4] + "0000", alice.user)
        unknown = ApiKey("ctm_000000000000", alice.secret.replace(alice.id, "ctm_000000000000"), alice.user)
        answers = [
            asyncio.run(self._log_in(kind, key)) for kind, key in (("wrong", wrong), ("unknown", unknown))
        ]
        self._check(answers[0].startswith("28P01 INVALID_API_KEY"), "28P01")
        self._check(answers[0] == answers[1], "and nobody learns which keys exist")

    def _revocation(self) -> None:
        asyncio.run(self._revoke(self._stage.make_key("to be revoked", ALICE, ["read:tasks"])))

    async def _revoke(self, key: ApiKey) -> None:
        ended = asyncio.Event()
        async with self._connected(key) as connection, self._connected(self._stage.keys["admin"]) as admin:
            connection.add_termination_listener(lambda _: ended.set())
            self._check(await connection.fetchval("SELECT 1") == 1, "a session is open")
            await self._ask(admin, "admin", f"SELECT revoke_api_key('{key.id}')")
            started = time.monotonic()
            closed = await _within(_DEADLINE, ended.wait())
            self._check(closed, f"closed {time.monotonic() - started:.2f} s later")
        answer = await self._log_in("revoked", key)
        self._check(answer.startswith("28P01 INVALID_API_KEY"), "and it doesn't log in again")

    def _access_log(self) -> None:
        question = (
            "SELECT event, target, intent, sqlstate, left(statement, 60) FROM sluice.access_log"
            f" WHERE user_id = '{ALICE}' ORDER BY at, id"
        )
        wanted = ("statement|readonly|read|", "statement|primary|write|", "denied|", "revoked|")

        def complete() -> bool:
            lines = self._psql_output(self._stage.keys["admin"], question).splitlines()
            return all(any(line.startswith(start) for line in lines) for start in wanted)

        logged = _eventually(complete)
        said = self._run_psql(self._stage.keys["admin"], question)
        self._check(logged, "reads, writes, what was denied and what was revoked")
        self._check(BOB not in said and _FORGED[:64] not in said, "literals are left out of the statements")
        said = self._run_psql(self._stage.keys["bob"], "SELECT DISTINCT user_id FROM sluice.access_log")
        self._check(said == BOB, "a user reads the own rows of it")

    def _metrics(self) -> None:
        text = self._get("/metrics")
        families = (
            "pgsluice_logins_total",
            "pgsluice_logins_refused_total",
            "pgsluice_statements_denied_total",
        )
        for line in text.splitlines():
            if line.startswith((*families, "pgsluice_sessions_revoked_total")):
                self._console.print(f"    {line}", style="dim", soft_wrap=True)
        for family in families:
            values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(family)]
            self._check(sum(float(value) for value in values) > 0, family)
        self._check("ok" in self._get("/healthz").lower(), "/healthz answers")
        self._check(bool(self._get("/readyz")), "/readyz answers 200")

    @asynccontextmanager
    async def _connected(self, key: ApiKey) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        connection = await self._connect(key)
        try:
            yield connection
        finally:
            connection.terminate()

    async def _connect(self, key: ApiKey) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            host=HOST,
            port=self._stage.port,
            user=key.id,
            password=key.secret,
            database=DATABASE,
            timeout=_DEADLINE,
            command_timeout=_DEADLINE,
        )

    async def _log_in(self, kind: str, key: ApiKey) -> str:
        """Try to log in; return the answer."""
        try:
            connection = await self._connect(key)
        except asyncpg.PostgresError as error:
            answer = _told_error(error)
        else:
            connection.terminate()
            answer = "logged in"
        self._told(f"connect with a key that is {kind}", answer)
        return answer

    async def _ask(self, connection: asyncpg.Connection[asyncpg.Record], who: str, statement: str) -> str:
        """Run one statement, print it and its answer, return the answer."""
        try:
            answer = await connection.execute(statement)
        except asyncpg.PostgresError as error:
            answer = _told_error(error)
        self._told(f"{who}: {_short(statement)}", answer)
        return answer

    def _run_psql(self, key: ApiKey, statement: str) -> str:
        """Run one statement by psql, print the command and what came back, return that."""
        said = self._psql_output(key, statement)
        who = next((name for name, known in self._stage.keys.items() if known == key), key.id)
        self._told(f'{who}: psql -c "{_short(statement)}"', said)
        return said

    def _psql_output(self, key: ApiKey, statement: str) -> str:
        done = subprocess.run(
            [self._psql, "-X", "-A", "-t", "-c", statement, self._stage.conninfo(key)],
            capture_output=True,
            text=True,
            timeout=_DEADLINE * 2,
            env={**os.environ, "LC_ALL": "C", "PGCONNECT_TIMEOUT": str(int(_DEADLINE))},
        )
        return (done.stdout + done.stderr).strip()

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._stage.url(path), timeout=_DEADLINE) as answer:
            text: str = answer.read().decode()
        self._told(f"GET {path}", f"{answer.status}, {len(text):,} bytes")
        return text

    def _told(self, asked: str, answer: str) -> None:
        self._console.print(f"  {asked}", soft_wrap=True)
        for line in answer.splitlines() or ["(nothing)"]:
            self._console.print(f"    {line}", style="dim", soft_wrap=True)

    def _check(self, holds: bool, what: str) -> None:
        self.checks.append((self._title, what, holds))
        self._console.print(
            f"  {'✓' if holds else '✗'} {what}", style="green" if holds else "bold red", soft_wrap=True
        )


async def _rows(connection: asyncpg.Connection[asyncpg.Record], statement: str) -> Sequence[Any]:
    return await connection.fetch(statement)


async def _within(seconds: float, work: Awaitable[object]) -> bool:
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return False
    return True


def _eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _told_error(error: asyncpg.PostgresError) -> str:
    parts = error.as_dict()
    return " ".join(filter(None, (parts.get("sqlstate"), parts.get("detail")))) + f": {parts.get('message')}"


def _short(statement: str) -> str:
    return statement.replace(_FORGED, _FORGED[:6] + "…")
