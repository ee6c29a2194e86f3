"""Addresses of both families, and ports that cannot be had."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import grpc
import pytest

from edgewright.client import Client
from edgewright.errors import ConfigError
from edgewright.serve.announcement import lines
from edgewright.serve.ports import at, bound, has_ipv6, listening, port_of, reserved

from .conftest import Launch, Running
from .processes import Start

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
LOOPBACKS = ("127.0.0.1", "[::1]")


def get(host: str, port: int) -> tuple[int, bytes]:
    """Status and body of /readyz."""
    with socket.create_connection((host.strip("[]"), port), timeout=60) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        told = b"".join(iter(lambda: connection.recv(4096), b""))
    return int(told[9:12]), told.partition(b"\r\n\r\n")[2]


def answers(running: Running, host: str) -> bool:
    """Whether both ports do."""
    server = running.server
    assert get(host, server.metrics_port) == (200, b"OK\n")
    with Client(f"{host}:{server.port}") as client:
        return bool(client.classify("bank")[0].label)


@needs_ipv6
@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::", "[::]"])
def test_every_interface_is_that_of_both_families(launch: Launch, everywhere: str) -> None:
    running = launch(host=everywhere)
    assert all(answers(running, host) for host in LOOPBACKS)


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_listened_on_alone(launch: Launch, host: str) -> None:
    running = launch(host=host, admin_host=host, admin_port=0)
    assert answers(running, "[::1]")
    for port in (running.server.port, running.server.metrics_port, running.server.admin_port):
        assert port
        socket.create_connection(("::1", port), timeout=60).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)


@needs_ipv6
def test_a_name_is_every_address_that_it_has(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = socket.getaddrinfo

    def both(host: str, *rest: object, **named: object) -> list[object]:
        hosts = ("::1", "127.0.0.1") if host == "localhost" else (host,)
        return [found for each in hosts for found in plain(each, *rest, **named)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    running = launch(host="localhost")
    assert [get(host, running.server.metrics_port)[0] for host in LOOPBACKS] == [200, 200]


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_a_port_that_is_taken_by_one_family_cannot_be_had(everywhere: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        for claim in (
            lambda: bound(everywhere, port, "--port", lambda _: pytest.fail("it was taken")),
            lambda: listening(everywhere, port, "--port", reserved=False),
            lambda: reserved(everywhere, port, "--port").__enter__(),
        ):
            with pytest.raises(ConfigError, match=f"--port {port} on {everywhere} cannot be had"):
                claim()


def test_a_free_port_is_the_same_by_every_address() -> None:
    with ExitStack() as opened:
        sockets = listening("0.0.0.0", 0, "--metrics-port", reserved=False)
        for each in sockets:
            opened.enter_context(each)
        assert {each.getsockname()[1] for each in sockets} == {port_of(sockets)}
        assert len(sockets) == 1 + has_ipv6()


def test_a_machine_without_ipv6_listens_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright.serve.ports.has_ipv6", lambda: False)
    for everywhere in ("0.0.0.0", "::"):
        sockets = listening(everywhere, 0, "--metrics-port", reserved=False)
        assert [each.family for each in sockets] == [socket.AF_INET]
        for each in sockets:
            each.close()


def test_a_name_of_ipv6_addresses_alone_is_refused_where_there_is_no_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"2001:db8::{each}", 0, 0, 0))  # RFC 3849
        for each in (1, 2)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr("edgewright.serve.ports.has_ipv6", lambda: False)
    with pytest.raises(ConfigError, match="--port 0 on six cannot be had"):
        listening("six", 0, "--port", reserved=False)


@pytest.mark.parametrize(
    "host",
    ["no.such.host.invalid", "192.0.2.1", "a" * 64, "a..b"],  # RFC 6761, RFC 5737, RFC 1035
)
def test_a_host_that_is_not_this_one_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--port 0 on {host} cannot be had") as told:
        listening(host, 0, "--port", reserved=False)
    assert "the host must be an address of this machine" in str(told.value)


def test_addresses_are_told_as_they_can_be_used() -> None:
    assert at("127.0.0.1", 80) == "127.0.0.1:80"
    assert at("::1", 80) == at("[::1]", 80) == "[::1]:80"
    told = {"host": "::", "port": 1, "metrics_port": 2, "admin_port": None, "models": []}
    assert lines({**told, "ready_ms": 100.0}) == [
        "ready in 0.1 s: gRPC on [::]:1, metrics on [::]:2"
    ]


@needs_ipv6
def test_several_processes_answer_by_both_families(start: Start, repository: object) -> None:
    free = ("--host", "::", "--port", "0", "--metrics-port", "0")
    process = start(str(repository), *free, "--processes", "2", "--json")
    told = process.ready()
    for host in LOOPBACKS:
        for each in told["processes"]:
            assert get(host, each["metrics_port"])[0] == 200
        with grpc.insecure_channel(f"{host}:{told['port']}") as channel:
            grpc.channel_ready_future(channel).result(60)
    process.popen.terminate()
    assert process.wait()[0] == 0
