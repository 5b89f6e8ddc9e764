from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.query.traceparent import traceparent_of

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PAIR = f"traceparent='{TRACE}'"


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT 1 /*{PAIR}*/",
        f"SELECT 1/*{PAIR}*/;",
        f"SELECT 1 /*{PAIR}*/ ;\n",
        f"SELECT 1; /*{PAIR}*/",
        f"/* first */ SELECT 1 /*action='x',framework='a%20b',{PAIR},tracestate='congo%3Dt61'*/",
        f"SELECT 1 /* action='x' , {PAIR} */",
        f"SELECT 1 /*{PAIR.replace('-', '%2D')}*/",
        f"SELECT 1 /*mytraceparent='x',{PAIR}*/",
        f"/*{PAIR}*/",
        f"SELECT '{'x' * 100_000}' /*{PAIR}*/",
    ],
)
def test_the_comment_at_the_end_tells_it(text: str) -> None:
    assert traceparent_of(text.encode()) == TRACE.encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "*/",
        "/**/",
        "SELECT 1",
        f"SELECT 1 /*{PAIR}*/ + 1",
        f"/*{PAIR}*/ SELECT 1",
        f"SELECT 1 -- {PAIR}",
        f"SELECT '{PAIR}*/",
        f"SELECT 1 /*{PAIR[:-1]}*/",
        f"SELECT 1 /*{PAIR}*/ /*action='x'*/",
        f"SELECT 1 /*mytraceparent='{TRACE}'*/",
        f"SELECT 1 /*traceparent={TRACE}*/",
        f"SELECT 1 /*traceparent=''{TRACE}''*/",
        f"SELECT 1 /*Traceparent='{TRACE}'*/",
        f"SELECT 1 /*{PAIR},x='{'y' * 5000}'*/",
    ],
)
def test_nothing_else_does(text: str) -> None:
    assert traceparent_of(text.encode()) == b""


@pytest.mark.parametrize(
    "value",
    [
        TRACE.replace("00-4", "01-4"),
        TRACE.replace("00-4", "ff-4"),
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "0",
        TRACE + "-00",
        TRACE.replace("-01", "_01"),
        TRACE.replace("4bf9", "4bg9"),
        TRACE.replace("4bf9", "4b/9"),
        TRACE.replace("4bf9", "4b:9"),
        TRACE.replace("4bf9", "é")[:55],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "",
        "%",
        "%00" * 55,
    ],
)
def test_what_is_no_traceparent_is_none(value: str) -> None:
    assert traceparent_of(f"SELECT 1 /*traceparent='{value}'*/".encode()) == b""


ids = st.tuples(
    st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda text: set(text) != {"0"}),
    st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: set(text) != {"0"}),
    st.text("0123456789abcdef", min_size=2, max_size=2),
)
others = st.dictionaries(
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda key: key != "traceparent"),
    st.text(max_size=20),
    max_size=4,
)


@given(ids, others, st.sampled_from(["", ";", " ; \n"]))
def test_every_traceparent_that_is_written_is_read(
    parts: tuple[str, str, str], pairs: dict[str, str], end: str
) -> None:
    made = "00-" + "-".join(parts)
    all_of_them = sorted({**pairs, "traceparent": made}.items())
    comment = ",".join(f"{key}='{quote(value, safe='')}'" for key, value in all_of_them)
    assert traceparent_of(f"SELECT 1 /*{comment}*/{end}".encode()) == made.encode()


VALID = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [b"/*", b"*/", b"'", b",", b";", b" ", b"traceparent='", TRACE.encode(), b"%2D", b"--"]
        ),
        st.binary(max_size=8),
    ),
    max_size=12,
)


@given(pieces)
def test_any_bytes_give_a_valid_one_that_they_hold_or_none(parts: list[bytes]) -> None:
    text = b"".join(parts)
    found = traceparent_of(text)
    assert found == b"" or (VALID.fullmatch(found) and found in text.replace(b"%2D", b"-"))
