"""A BEGIN held back: what drivers see is PostgreSQL's, and with --direct it is."""

from __future__ import annotations

import psycopg
import pytest

from tests.integration.conftest import MakeTable
from tests.integration.support import Installation, Login


def test_psycopg_commits_and_rolls_back(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with writer.connect(autocommit=False) as connection:
        connection.execute(f"INSERT INTO {table} VALUES (1)")
        connection.rollback()
        connection.execute(f"INSERT INTO {table} VALUES (2)")
        connection.commit()
        with connection.transaction(), connection.transaction():
            connection.execute(f"INSERT INTO {table} VALUES (%s)", (3,))
        with connection.pipeline():
            connection.execute(f"INSERT INTO {table} VALUES (%s)", (4,))
            connection.commit()
        assert connection.execute(f"SELECT id FROM {table} ORDER BY id").fetchall() == [(2,), (3,), (4,)]


async def test_asyncpg_commits_and_rolls_back(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    async with writer.asyncpg() as connection:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute(f"INSERT INTO {table} VALUES ($1)", 1)
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute(f"INSERT INTO {table} VALUES ($1)", 2)
                raise ZeroDivisionError
        async with connection.transaction():
            pass
        async with connection.transaction(readonly=True):
            assert [row["id"] for row in await connection.fetch(f"SELECT id FROM {table}")] == [1]
        assert not connection.is_in_transaction()


def test_a_begin_as_an_extended_query(writer: Login) -> None:
    with writer.connect() as connection:
        pgconn = connection.pgconn
        for statement, tag, status in (
            (b"BEGIN", b"BEGIN", psycopg.pq.TransactionStatus.INTRANS),
            (b"SELECT 1", b"SELECT 1", psycopg.pq.TransactionStatus.INTRANS),
            (b"COMMIT", b"COMMIT", psycopg.pq.TransactionStatus.IDLE),
            (b"START TRANSACTION READ ONLY", b"START TRANSACTION", psycopg.pq.TransactionStatus.INTRANS),
            (b"END", b"COMMIT", psycopg.pq.TransactionStatus.IDLE),
        ):
            assert pgconn.exec_params(statement, None).command_status == tag
            assert pgconn.transaction_status == status


def test_an_error_in_the_first_statement_fails_the_transaction(writer: Login) -> None:
    with writer.connect() as connection:
        connection.execute("BEGIN")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        assert connection.execute("COMMIT").statusmessage == "ROLLBACK"


def test_a_refused_statement_fails_the_transaction(reader: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with reader.connect() as connection:
        connection.execute("BEGIN")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"INSERT INTO {table} VALUES (1)")
        for statement in ("SELECT 1", "SAVEPOINT a"):
            with pytest.raises(psycopg.errors.InFailedSqlTransaction) as told:
                connection.execute(statement)
            assert "commands ignored until end of transaction block" in str(told.value)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        assert connection.execute("COMMIT").statusmessage == "ROLLBACK"
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "script",
    [
        "BEGIN;\nBEGIN;\nCOMMIT;\nCOMMIT;\nROLLBACK;\n",
        "BEGIN;\nCOMMIT AND CHAIN;\nSELECT 1;\nROLLBACK;\n",
        "BEGIN;\nSAVEPOINT a;\nSELECT 1/0;\nROLLBACK TO a;\nSELECT 2;\nEND;\n",
        "BEGIN ISOLATION LEVEL SERIALIZABLE;\nSHOW transaction_isolation;\nEND;\n",
        "BEGIN;\nSET TRANSACTION ISOLATION LEVEL REPEATABLE READ;\nSHOW transaction_isolation;\nEND;\n",
        "BEGIN;\nCOPY (SELECT 1) TO STDOUT;\nCOMMIT;\nBEGIN;\n\\echo :SERVER_VERSION_NUM\nABORT;\n",
        "BEGIN;\nDECLARE c CURSOR FOR SELECT generate_series(1, 5);\nFETCH 2 FROM c;\nFETCH ALL FROM c;\nEND;\n",
        "PREPARE q AS SELECT 2;\nBEGIN;\nEXECUTE q;\nDEALLOCATE q;\nEND;\nBEGIN;\nEXECUTE q;\nSELECT 1;\nEND;\n",
        "BEGIN;\nPREPARE q AS SELECT 3;\nROLLBACK;\nBEGIN;\nEXECUTE q;\nDEALLOCATE ALL;\nEND;\n",
        "BEGIN;\nPREPARE TRANSACTION 'x';\nSELECT 1;\n",
        "BEGIN READ ONLY;\nSELECT pg_is_in_recovery() IS NULL;\nSET TRANSACTION READ WRITE;\nEND;\n",
        "\\set AUTOCOMMIT off\nSELECT 1;\nCOMMIT;\nSELECT 2;\nROLLBACK;\nROLLBACK;\n",
        "SET application_name = 'a';\nBEGIN;\nSHOW application_name;\nSET LOCAL work_mem = '1MB';\nEND;\n",
        "BEGIN;\nLISTEN somebody;\nNOTIFY somebody;\nCOMMIT;\nUNLISTEN *;\n",
    ],
)
def test_psql_prints_the_same_as_at_postgresql(
    writer: Login, installation: Installation, script: str
) -> None:
    ours = writer.psql(script, "-At")
    theirs = installation.role("app_rw").psql(script, "-At")
    keep = [line for line in ours.stdout.splitlines() if "Asynchronous" not in line]
    want = [line for line in theirs.stdout.splitlines() if "Asynchronous" not in line]
    assert keep == want
    assert ours.stderr == theirs.stderr
    assert ours.returncode == theirs.returncode
