"""Run the edge by hand: what it prints goes into pgsluice.yaml.

    python -m tests.edge --postgres 5432 --round-trip 40 --token id.access:secret

While it runs: `reset`, `silence`, `heal`, `answer no-cloudflared`, `answer` (as it should be), `seen`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.certificates import Authority
from tests.edge.answers import ANSWERS
from tests.edge.edge import Edge
from tests.edge.running import RunningEdge


def main() -> None:
    options = _arguments()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="edge-"))
    authority = Authority(directory, "edge-ca")
    edge = RunningEdge(
        options.postgres,
        authority.issue("edge", "localhost"),
        round_trip=options.round_trip / 1000,
        port=options.port,
        token=tuple(options.token.split(":", 1)) if options.token else None,
        ping_every=options.ping_every,
        reset_within=options.reset_within,
    )
    if options.answer:
        edge.answers(options.answer)
    token = ", service_token: {id: …, secret: …}" if options.token else ""
    print(f"SSL_CERT_FILE={authority.file}")
    print(
        f"  - {{name: tunnel, host: localhost, port: {edge.port}, transport: cloudflare{token}}}", flush=True
    )
    try:
        for line in sys.stdin:
            _obey(edge, line.split())
        edge._thread.join()
    except KeyboardInterrupt:
        edge.close()


def _obey(edge: RunningEdge, words: list[str]) -> None:
    match words:
        case ["reset"]:
            edge.do(Edge.reset)
        case ["silence"]:
            edge.do(Edge.silence)
        case ["heal"]:
            edge.do(Edge.heal)
        case ["answer", *name]:
            edge.answers(name[0] if name and name[0] in ANSWERS else "")
        case _:
            seen = edge.seen
            print(dict(seen.counts), f"largest message {seen.largest_message}", seen.violations, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.edge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--postgres", type=int, default=5432, metavar="PORT", help="PostgreSQL's (5432)")
    parser.add_argument("--port", type=int, default=0, help="the edge's own; any free one")
    parser.add_argument("--round-trip", type=float, default=0.0, metavar="MS", help="to the edge (0)")
    parser.add_argument("--token", metavar="ID:SECRET", help="the service token that is needed")
    parser.add_argument("--answer", choices=list(ANSWERS), help="what upgrades are answered")
    parser.add_argument("--ping-every", type=float, default=54.0, metavar="S", help="0 for never (54)")
    parser.add_argument("--reset-within", type=float, default=0.0, metavar="S", help="of each connection")
    parser.add_argument("--directory", type=Path, help="where certificates are made; a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
