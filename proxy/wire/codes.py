"""Message codes and limits (manual, "Message Formats").

The same letter means different things in the two directions, hence the prefixes FE (from a client) and
BE (from a server).
"""

from __future__ import annotations

from typing import Final

# From a client.
FE_BIND: Final = 0x42  # B
FE_CLOSE: Final = 0x43  # C
FE_COPY_DATA: Final = 0x64  # d
FE_COPY_DONE: Final = 0x63  # c
FE_COPY_FAIL: Final = 0x66  # f
FE_DESCRIBE: Final = 0x44  # D
FE_EXECUTE: Final = 0x45  # E
FE_FLUSH: Final = 0x48  # H
FE_FUNCTION_CALL: Final = 0x46  # F
FE_PARSE: Final = 0x50  # P
FE_PASSWORD: Final = 0x70  # p, also SASLInitialResponse and SASLResponse
FE_QUERY: Final = 0x51  # Q
FE_SYNC: Final = 0x53  # S
FE_TERMINATE: Final = 0x58  # X

# From a server.
BE_AUTHENTICATION: Final = 0x52  # R
BE_BACKEND_KEY_DATA: Final = 0x4B  # K
BE_BIND_COMPLETE: Final = 0x32  # 2
BE_CLOSE_COMPLETE: Final = 0x33  # 3
BE_COMMAND_COMPLETE: Final = 0x43  # C
BE_COPY_BOTH: Final = 0x57  # W
BE_COPY_DATA: Final = 0x64  # d
BE_COPY_DONE: Final = 0x63  # c
BE_COPY_IN: Final = 0x47  # G
BE_COPY_OUT: Final = 0x48  # H
BE_DATA_ROW: Final = 0x44  # D
BE_EMPTY_QUERY: Final = 0x49  # I
BE_ERROR: Final = 0x45  # E
BE_NEGOTIATE_VERSION: Final = 0x76  # v
BE_NO_DATA: Final = 0x6E  # n
BE_NOTICE: Final = 0x4E  # N
BE_NOTIFICATION: Final = 0x41  # A
BE_PARAMETER_DESCRIPTION: Final = 0x74  # t
BE_PARAMETER_STATUS: Final = 0x53  # S
BE_PARSE_COMPLETE: Final = 0x31  # 1
BE_PORTAL_SUSPENDED: Final = 0x73  # s
BE_READY: Final = 0x5A  # Z
BE_ROW_DESCRIPTION: Final = 0x54  # T

# Transaction status in ReadyForQuery.
IDLE: Final = 0x49  # I
IN_TRANSACTION: Final = 0x54  # T
FAILED_TRANSACTION: Final = 0x45  # E

# Authentication requests (the number that follows in an R message).
AUTH_OK: Final = 0
AUTH_CLEARTEXT: Final = 3
AUTH_MD5: Final = 5
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

# Codes in place of a protocol version in the first packet.
PROTOCOL_3_0: Final = 196608
CANCEL_REQUEST: Final = 80877102
SSL_REQUEST: Final = 80877103
GSSENC_REQUEST: Final = 80877104

HEADER: Final = 5
"""Bytes of a message's header: its type and a length that counts itself."""

MAX_STARTUP: Final = 10_000
"""PostgreSQL's own limit on a startup packet (MAX_STARTUP_PACKET_LENGTH in libpq/pqcomm.h)."""

MAX_LOGIN_MESSAGE: Final = 65_535
"""PostgreSQL's limit on a password or SASL message (PG_MAX_AUTH_TOKEN_LENGTH)."""

MAX_MESSAGE: Final = 0x3FFFFFFE
"""PostgreSQL's limit on a message with data (PQ_LARGE_MESSAGE_LIMIT, one byte under 1 GiB)."""

MAX_SMALL_MESSAGE: Final = 10_000
"""PostgreSQL's limit on messages that hold a name at most (PQ_SMALL_MESSAGE_LIMIT)."""

MAX_HELD: Final = 65_536
"""A body longer than this streams behind its header and is never held whole. One read of a socket
brings up to 256 KiB, so holding a quarter of that at most keeps a session's memory in the order of one read."""
