"""Servers of several processes behind TLS, certificates of callers and tokens, and on IPv6."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme
from free_ports import free_port

from edgewright.serve.tokens import Right, new_token

from .families import Family, Identity, Start, page
from .processes import until
from .test_tls import Authority

Code = grpc.StatusCode


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, trustme.CA())


def secret(folder: Path, authority: Authority) -> tuple[str, ...]:
    """Options of a certificate in ``folder``, written, and renewed, as Kubernetes does: by links."""
    certificate, key = authority.issue()
    content = folder / f"..{len(list(folder.glob('..[0-9]*')))}"
    content.mkdir(parents=True)
    for name, file in {"tls.crt": certificate, "tls.key": key}.items():
        file.rename(content / name)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..new").symlink_to(content.name)
    os.replace(folder / "..new", folder / "..data")
    return ("--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"))


def codes(family: Family, caller: Identity) -> grpc.StatusCode:
    """What a caller that is not let in hears."""
    family.caller = caller
    with pytest.raises(grpc.RpcError) as refused:
        family.classify()
    code: grpc.StatusCode = refused.value.code()
    return code


def test_every_process_takes_a_renewed_certificate(
    start_two: Start, repository: Path, authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "secret"
    family = start_two(repository, *secret(folder, authority))
    family.announced(Identity(authority.root))
    assert len(family.nodes()) == 2
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", trustme.CA())
    secret(folder, other)
    caller = Identity(other.root)
    for port in family.http_ports:
        until(lambda port=port: page(port, "/readyz", caller)[0] == 200)
    family.caller = caller
    assert len(family.nodes()) == 2
    taken = 'edgewright_reloads_total{files="tls",outcome="taken"}'
    assert [family.count(number, taken) for number in range(2)] == [1, 1]
    assert codes(family, Identity(authority.root)) is Code.UNAVAILABLE
    family.popen.terminate()
    assert family.wait()[0] == 0


def test_every_process_asks_for_certificates_and_answers_probes_without(
    start_two: Start, repository: Path, authority: Authority, tmp_path: Path
) -> None:
    clients = ("--tls-client-ca", str(authority.root))
    family = start_two(repository, *secret(tmp_path / "secret", authority), *clients)
    stranger = Identity(authority.root)
    certificate, key = authority.issue("me")
    family.announced(replace(stranger, certificate=certificate, key=key))
    assert len(family.nodes()) == 2
    for number, port in enumerate(family.http_ports):
        assert page(port, "/readyz", stranger)[0] == 200
        assert page(port, "/metrics", stranger)[0] == 401
        assert family.page(number, "/metrics")[0] == 200
    assert codes(family, stranger) is Code.UNAVAILABLE


def test_every_process_asks_for_tokens_and_forgets_those_that_are_withdrawn(
    start_two: Start, repository: Path, tmp_path: Path
) -> None:
    file, (known, token), (later, other) = (
        tmp_path / "tokens.txt",
        *(new_token(name, [Right.CALL, Right.METRICS]) for name in ("known", "later")),
    )
    file.write_text(token.line() + "\n")
    family = start_two(repository, "--tokens", str(file)).announced(Identity(token=known))
    assert len(family.nodes()) == 2
    assert codes(family, Identity(token=later)) is Code.UNAUTHENTICATED
    file.write_text(other.line() + "\n")
    family.caller = Identity(token=later)
    for number in range(2):
        until(lambda number=number: family.page(number, "/metrics")[0] == 200)
    assert len(family.nodes()) == 2
    assert codes(family, Identity(token=known)) is Code.UNAUTHENTICATED


def test_processes_share_a_port_of_ipv6(start_two: Start, repository: Path) -> None:
    family = start_two(repository, "--host", "::1").announced()
    assert family.host == "[::1]"
    assert len(family.nodes()) == 2
    assert [family.page(number, "/readyz")[0] for number in range(2)] == [200, 200]


def test_processes_share_ports_of_every_interface_by_both_families(
    start_two: Start, repository: Path
) -> None:
    family = start_two(repository, "--host", "0.0.0.0").announced()
    for host in ("127.0.0.1", "[::1]"):
        family.host = host
        assert len(family.nodes()) == 2
        assert [family.page(number, "/readyz")[0] for number in range(2)] == [200, 200]
    family.popen.terminate()
    assert family.wait()[0] == 0


def test_ports_in_use_on_ipv6_are_told(start_two: Start, repository: Path) -> None:
    first = start_two(repository, "--host", "::1").announced()
    for option, port in (("--port", first.told["port"]), ("--metrics-port", first.http_ports[1])):
        code, _, err = start_two(repository, "--host", "::1", option, str(port)).wait()
        assert code == 2
        assert f"error: {option} {port} on ::1 cannot be had" in err


def test_http_ports_are_the_one_that_was_named_and_that_above(
    start_two: Start, repository: Path
) -> None:
    port = free_port(above=1)
    family = start_two(repository, "--metrics-port", str(port)).announced()
    assert family.http_ports == [port, port + 1]
