"""The checks that every driver's program does; the programs' functions have these names."""

from __future__ import annotations

from typing import Final

CHECKS: Final = {
    "connect": "log in, and ask for a first row",
    "types": "integers, numeric, text beyond ASCII, bytea, timestamptz, json, arrays and NULL come back as they went",
    "prepared": "two statements in turn, 20 times each: past the point from which the driver prepares them",
    "commit": "another session sees what a transaction committed",
    "rollback": "nothing stays of what was rolled back",
    "savepoint": "a unique violation, ROLLBACK TO, and the transaction goes on",
    "error": "division by zero and a syntax error with their SQLSTATE; the connection goes on",
    "error_in_transaction": "25P02 until the rollback, then the connection goes on",
    "copy_in": "10,000 rows by COPY FROM STDIN",
    "copy_out": "10,000 rows by COPY TO STDOUT",
    "cursor": "10,000 rows from the server in portions",
    "cancel": "a running statement ends with 57014; the connection goes on",
    "listen": "three notifications arrive at their listener",
    "big_row": "4 MiB there and back in one value",
    "batch": "100 statements sent together: the driver's batch, pipeline or string of statements",
    "settings": "what SET said holds for 20 statements, and not for another session",
    "many_connections": "8 connections at once, on a pool of 3, lose no update",
    "replica": "a read is served by the replica",
    "read_your_write": "50 times: a plain SELECT sees the row that was just written",
}
