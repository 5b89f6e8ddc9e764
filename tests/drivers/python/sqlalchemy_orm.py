"""SQLAlchemy's Core and ORM, over the driver that the command line names: psycopg or asyncpg."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    Integer,
    LargeBinary,
    Numeric,
    Text,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.util import greenlet_spawn

from tests.drivers.checks import CHECKS
from tests.drivers.python.report import (
    BIG,
    DATABASE,
    HOST,
    NUMERIC,
    PASSWORD,
    PORT,
    TABLE,
    UNICODE,
    USER,
    equal,
    run,
)

DRIVER = sys.argv[1]
URL = sqlalchemy.URL.create(f"postgresql+{DRIVER}", USER, PASSWORD, HOST, PORT, DATABASE)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = TABLE
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    number: Mapped[int] = mapped_column(default=0)


def make_engine() -> sqlalchemy.Engine:
    if DRIVER == "asyncpg":
        return create_async_engine(URL).sync_engine
    return sqlalchemy.create_engine(URL)


engine = make_engine()
autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")


def fails(sqlstate: str, work: Callable[[], object]) -> None:
    try:
        work()
    except DBAPIError as error:
        equal(getattr(error.orig, "sqlstate", None), sqlstate)
    else:
        raise AssertionError(f"it didn't fail with {sqlstate}")


def noted(number: int) -> int:
    with Session(engine) as other:
        return len(other.scalars(select(Note).where(Note.id == number).with_for_update(read=True)).all())


def connect() -> None:
    with engine.connect() as connection:
        equal(connection.scalar(select(1)), 1)
        assert connection.dialect.server_version_info is not None
        assert connection.dialect.server_version_info >= (15,)


def types() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    values: list[tuple[Any, Any]] = [
        (Integer, 2**31 - 1),
        (BigInteger, -(2**53) - 1),
        (Numeric, Decimal(NUMERIC)),
        (Text, UNICODE),
        (LargeBinary, b"\x00\xff'\\"),
        (TIMESTAMP(timezone=True), moment),
        (JSON, {"a": [1, None]}),
        (JSONB, {"a": [1, None]}),
        (ARRAY(Integer), [1, 2, None]),
        (ARRAY(Text), ["a", None, 'with "quotes", {braces}']),
        (Boolean, True),
        (Date, None),
    ]
    with engine.connect() as connection:
        for kind, value in values:
            equal(connection.scalar(select(sqlalchemy.cast(literal(value, kind), kind))), value)


def prepared() -> None:
    with autocommit.connect() as connection, engine.connect() as other:
        for number in range(20):
            plus = select(literal(number, Integer) + 1)
            equal(connection.scalar(plus), number + 1)
            equal(connection.scalar(select(literal(str(number)) + "x")), f"{number}x")
            equal(other.scalar(plus), number + 1)
            other.commit()


def commit() -> None:
    with Session(engine) as session:
        session.add(Note(id=100, note="kept"))
        session.commit()
        equal(noted(100), 1)


def rollback() -> None:
    with Session(engine) as session:
        session.add(Note(id=200, note="gone"))
        session.flush()
        session.rollback()
        equal(noted(200), 0)


def savepoint() -> None:
    with Session(engine) as session:
        session.add(Note(id=300))
        session.flush()
        try:
            with session.begin_nested():
                session.execute(insert(Note).values(id=300))
        except IntegrityError:
            session.add(Note(id=301))
        session.commit()
        equal(noted(300) + noted(301), 2)


def error() -> None:
    with autocommit.connect() as connection:
        for _ in range(3):
            fails("22012", lambda: connection.execute(select(literal(1, Integer) / literal(0, Integer))))
            fails("42601", lambda: connection.execute(text("SELEC 1")))
            equal(connection.scalar(select(1)), 1)


def error_in_transaction() -> None:
    with engine.connect() as connection:
        for _ in range(3):
            fails("22012", lambda: connection.execute(text("SELECT 1/0")))
            fails("25P02", lambda: connection.execute(text("SELECT 1")))
            connection.rollback()
            equal(connection.scalar(select(1)), 1)
            connection.commit()


def cursor() -> None:
    with Session(engine) as session:
        statement = select(func.generate_series(1, 10000)).execution_options(yield_per=100)
        equal(sum(session.scalars(statement)), 50_005_000)


def big_row() -> None:
    with engine.connect() as connection:
        equal(connection.scalar(select(literal(BIG, Text))), BIG)


def batch() -> None:
    with Session(engine) as session:
        session.add_all([Note(id=number, note=UNICODE) for number in range(500, 600)])
        session.commit()
        count = select(func.count()).select_from(Note).where(Note.id.between(500, 599))
        equal(session.scalar(count), 100)


def settings() -> None:
    with autocommit.connect() as connection, autocommit.connect() as other:
        connection.execute(text("SET work_mem = '7MB'"))
        for _ in range(20):
            equal(connection.scalar(text("SHOW work_mem")), "7MB")
            assert other.scalar(text("SHOW work_mem")) != "7MB"
        connection.execute(text("RESET work_mem"))


def many_connections() -> None:
    total = select(Note.number).where(Note.id == 0).with_for_update(read=True)
    with autocommit.connect() as connection:
        before = connection.scalar(total)
        assert before is not None
        # In turn: asyncpg's sessions belong to one thread.
        sessions = [Session(engine) for _ in range(8)]
        for _ in range(10):
            for session in sessions:
                session.execute(update(Note).where(Note.id == 0).values(number=Note.number + 1))
                session.commit()
        for session in sessions:
            session.close()
        equal(connection.scalar(total), before + 80)


def replica() -> None:
    with autocommit.connect() as connection:
        deadline = time.monotonic() + 10
        while not connection.scalar(select(func.pg_is_in_recovery())):
            assert time.monotonic() < deadline, "not within 10 s"
            time.sleep(0.05)


def read_your_write() -> None:
    # An engine's pool may give another connection after each commit, which knows nothing of the write.
    with autocommit.connect() as connection, Session(connection) as session:
        for number in range(700, 750):
            session.add(Note(id=number))
            session.commit()
            equal(session.scalar(select(Note.id).where(Note.id == number)), number)


def asynchronous(check: Callable[[], None]) -> Callable[[], Any]:
    """Return the check as a coroutine function, which runs it on asyncpg as SQLAlchemy's async API does."""

    async def spawned() -> None:
        global engine, autocommit
        engine = make_engine()  # one event loop's connections are of no use in the next
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        await greenlet_spawn(check)
        await greenlet_spawn(engine.dispose)

    return spawned


if __name__ == "__main__":
    program: dict[str, Any] = {
        name: each for name, each in globals().items() if name in CHECKS and inspect.isfunction(each)
    }
    if DRIVER == "asyncpg":
        program = {name: asynchronous(each) for name, each in program.items()}
    run(sqlalchemy.__version__, program)
