"""Django's ORM over psycopg 3, at its default settings but for one alias with server-side binding."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import django
from django.conf import settings as configuration

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

LOGIN = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": HOST,
    "PORT": PORT,
    "USER": USER,
    "PASSWORD": PASSWORD,
    "NAME": DATABASE,
}
# Django asks for no prepared statements unless it is told so.
PREPARES = {"OPTIONS": {"server_side_binding": True, "prepare_threshold": 2}}

configuration.configure(
    DATABASES={"default": LOGIN, "other": LOGIN, "prepares": LOGIN | PREPARES}
    | {f"one of {number}": LOGIN for number in range(8)},
    USE_TZ=True,
)
django.setup()

from django.contrib.postgres.fields import ArrayField  # noqa: E402  its modules need the configuration
from django.db import IntegrityError, connections, models, transaction  # noqa: E402
from django.db.models.functions import Cast  # noqa: E402


class Note(models.Model):  # type: ignore[misc]  # Django has no types of its own
    note = models.TextField(null=True)
    number = models.IntegerField(default=0)

    class Meta:
        app_label = "drivers"
        db_table = TABLE
        managed = False


def value(statement: str, *parameters: object, using: str = "default") -> Any:
    with connections[using].cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchone()[0] if cursor.description else None


def fails(sqlstate: str, work: Callable[[], object]) -> None:
    try:
        work()
    except django.db.Error as error:
        equal(getattr(error.__cause__, "sqlstate", None), sqlstate)
    else:
        raise AssertionError(f"it didn't fail with {sqlstate}")


def noted(number: int) -> int:
    # Of another session, and on the primary.
    with transaction.atomic(using="other"):
        return len(Note.objects.using("other").select_for_update().filter(id=number))


def connect() -> None:
    equal(value("SELECT 1"), 1)
    assert connections["default"].pg_version >= 150000


def types() -> None:
    values: list[tuple[Any, Any]] = [
        (models.IntegerField(), 2**31 - 1),
        (models.BigIntegerField(), -(2**53) - 1),
        (models.DecimalField(max_digits=30, decimal_places=10), Decimal(NUMERIC)),
        (models.TextField(), UNICODE),
        (models.BinaryField(), b"\x00\xff'\\"),
        (models.DateTimeField(), datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        (models.JSONField(), {"a": [1, None]}),
        (ArrayField(models.IntegerField()), [1, 2, None]),
        (ArrayField(models.TextField()), ["a", None, 'with "quotes", {braces}']),
        (models.BooleanField(), True),
        (models.DateField(), None),
    ]
    for using in ("default", "prepares"):
        for field, one in values:
            found = (
                Note.objects.using(using).annotate(one=Cast(models.Value(one, field), field)).get(id=0).one
            )
            equal(bytes(found) if isinstance(found, memoryview) else found, one)


def prepared() -> None:
    for number in range(20):
        equal(value("SELECT %s::integer + 1", number, using="prepares"), number + 1)
        equal(value("SELECT %s::text || 'x'", str(number), using="prepares"), f"{number}x")
        with transaction.atomic(using="prepares"):
            equal(Note.objects.using("prepares").get(id=0).note, "zero")


def commit() -> None:
    with transaction.atomic():
        Note.objects.create(id=100, note="kept")
    equal(noted(100), 1)


def rollback() -> None:
    with transaction.atomic():
        Note.objects.create(id=200, note="gone")
        transaction.set_rollback(True)
    equal(noted(200), 0)


def savepoint() -> None:
    with transaction.atomic():
        Note.objects.create(id=300)
        try:
            with transaction.atomic():
                Note.objects.create(id=300)
        except IntegrityError:
            Note.objects.create(id=301)
    equal(noted(300) + noted(301), 2)


def error() -> None:
    for _ in range(3):
        fails("22012", lambda: value("SELECT 1/%s::integer", 0))
        fails("42601", lambda: value("SELEC 1"))
        equal(value("SELECT 1"), 1)


def error_in_transaction() -> None:
    for _ in range(3):
        with transaction.atomic():
            fails("22012", lambda: value("SELECT 1/0"))
            fails("25P02", lambda: value("SELECT 1"))
            transaction.set_rollback(True)
        equal(value("SELECT 1"), 1)


def cursor() -> None:
    # Outside a transaction Django's cursors are WITH HOLD.
    everything = Note.objects.filter(id__gte=1_000_000).values_list("id", flat=True)
    value(f"INSERT INTO {TABLE} SELECT generate_series(1000001, 1010000)")
    equal(sum(everything.iterator(chunk_size=100)), 10_000 * 1_000_000 + 50_005_000)
    with transaction.atomic():
        equal(sum(everything.iterator(chunk_size=100)), 10_000 * 1_000_000 + 50_005_000)


def big_row() -> None:
    equal(value("SELECT %s::text", BIG), BIG)


def batch() -> None:
    Note.objects.bulk_create([Note(id=number, note=UNICODE) for number in range(500, 600)])
    equal(Note.objects.filter(id__range=(500, 599)).count(), 100)


def settings() -> None:
    value("SET work_mem = '7MB'")
    for _ in range(20):
        equal(value("SHOW work_mem"), "7MB")
        assert value("SHOW work_mem", using="other") != "7MB"
    value("RESET work_mem")


def many_connections() -> None:
    total = f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE"
    before = value(total)
    for _ in range(10):
        for number in range(8):
            with transaction.atomic(using=f"one of {number}"):
                Note.objects.using(f"one of {number}").filter(id=0).update(number=models.F("number") + 1)
    equal(value(total) - before, 80)


def replica() -> None:
    connections["default"].close()
    deadline = time.monotonic() + 10
    while not value("SELECT pg_is_in_recovery()"):
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.05)


def read_your_write() -> None:
    for number in range(700, 750):
        Note.objects.create(id=number)
        equal(Note.objects.get(id=number).id, number)


if __name__ == "__main__":
    run(django.get_version(), globals())
