from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from proxy.errors import SluiceError
from proxy.processes.inherited import VARIABLE, Inherited, Place, bequeath, inherited
from proxy.processes.sockets import HTTP, POSTGRES, Sockets, deal
from proxy.transport import tcp


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


async def test_a_successor_takes_the_sockets_at_the_addresses_of_its_configuration(tmp_path: Path) -> None:
    first = Sockets()
    before = await first.postgres("127.0.0.1", 0, tmp_path)
    path = tmp_path / f".s.PGSQL.{port_of(before[0])}"
    second = Sockets(first.named)
    assert await second.postgres("127.0.0.1", port_of(before[0]), tmp_path) == before
    first.keep()
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


async def test_what_the_configuration_names_no_more_is_closed() -> None:
    first = Sockets()
    (before,) = await first.postgres("127.0.0.1", 0)
    second = Sockets(first.named)
    (after,) = await second.postgres("127.0.0.2", port_of(before))
    assert after is not before
    second.close_others()
    assert before.fileno() == -1
    second.close()


async def test_workers_have_a_socket_each_at_one_address() -> None:
    sockets = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = port_of(free)
    group = await sockets.postgres("127.0.0.1", port, workers=3)
    assert {sock.getsockname() for sock in group} == {("127.0.0.1", port)}
    assert [[sock] for sock in group] == deal(group, 3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    tcp.listen(group[0])
    socket.create_connection(("127.0.0.1", port), 1).close()
    with pytest.raises(SluiceError, match="Address already in use"):
        await Sockets().postgres("127.0.0.1", port, workers=2)
    more = await Sockets(sockets.named).postgres("127.0.0.1", port, workers=4)
    assert more[:3] == group and len(more) == 4
    more[3].close()
    sockets.close()


async def test_where_there_are_fewer_sockets_workers_share_them() -> None:
    sockets = Sockets()
    alone = await sockets.postgres("127.0.0.1", 0)
    assert await Sockets(sockets.named).postgres("127.0.0.1", port_of(alone[0]), workers=2) == alone
    assert deal(alone, 3) == [alone, alone, alone]
    sockets.close()


async def test_where_there_are_more_sockets_workers_have_several() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = port_of(free)
    sockets = Sockets()
    a, b, c = await sockets.postgres("127.0.0.1", port, workers=3)
    assert deal([a, b, c], 2) == [[a, c], [b]]
    sockets.close()


async def test_those_of_systemd_are_used_whatever_the_configuration_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as clients, socket.create_server(("127.0.0.1", 0)) as http:
        sockets = Sockets([(POSTGRES, clients), (HTTP, http)], fixed=True)
        assert await sockets.postgres("10.0.0.1", 1) == [clients]
        assert await sockets.http("10.0.0.1", 2) == [http]


def test_what_is_bequeathed_is_inherited() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as report:
        place = Place(1, (4, 6))
        bequest = bequeath([(POSTGRES, sock)], True, Path("/run/x"), os.dup(report.fileno()), place, True)
        assert set(bequest.descriptors) > {sock.fileno()}
        environment = dict(bequest.environment)
        given = inherited(environment)
        assert VARIABLE not in environment
        ((name, same),) = given.sockets
        assert (name, same.getsockname()) == (POSTGRES, sock.getsockname())
        assert (given.fixed, given.runtime, given.place, given.patient) == (True, Path("/run/x"), place, True)
        assert (place.number, place.workers, place.is_first) == (6, 2, False)
        assert not os.get_inheritable(same.fileno())
        same.detach()
        os.close(given.report)


def test_nothing_is_inherited_of_another_process_s_activation() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "postgres"}
    assert inherited(environment) == Inherited()
    assert environment == {}


@pytest.mark.parametrize("given", ["", "{}", "[]", "nonsense", json.dumps({"sockets": [["postgres", 999]]})])
def test_what_no_process_of_ours_sets_is_refused(given: str) -> None:
    if not given:
        assert inherited({VARIABLE: given}) == Inherited()
        return
    with pytest.raises(SluiceError):
        inherited({VARIABLE: given})


@pytest.mark.parametrize(
    ("count", "names"), [("x", "postgres"), ("2", "postgres"), ("1", "a:b"), ("100", "")]
)
def test_an_activation_that_is_not_consistent_is_refused(count: str, names: str) -> None:
    environment = {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}
    with pytest.raises(SluiceError, match="don't fit each other"):
        inherited(environment)
