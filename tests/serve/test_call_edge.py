"""One handler for all methods of a server, and what is around every call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from edgewright.serve.call_edge import CallEdge
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.instruments import Instruments
from edgewright.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server

from .conftest import Launch


class Details:
    method = "/edgewright.v1.ModelService/GetModel"
    invocation_metadata = ()


class NoSuchMethod(Details):
    method = "/edgewright.v1.ModelService/Guess"


def edge_of_models() -> CallEdge:
    edge = CallEdge(CallObserver(Instruments()))
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]
    return edge


def test_methods_of_generated_code_are_found_by_their_names_and_wrapped_once() -> None:
    edge = edge_of_models()
    handler = edge.service(Details)
    assert asyncio.iscoroutinefunction(handler.unary_unary)
    assert handler is edge.service(Details)
    assert edge.service(NoSuchMethod) is None


def test_no_server_registers_a_method(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ``grpc.aio`` would keep a pending call for each of them."""
    registered: list[str] = []

    def register(_server: Any, service: str, _handlers: Any) -> None:
        registered.append(service)

    # The class of what ``grpc.aio.server`` makes; ``grpc.aio.Server`` is an interface alone.
    monkeypatch.setattr(grpc.aio._server.Server, "add_registered_method_handlers", register)
    running = launch(reflection=True, admin_port=0)
    assert running.classify("bank").classifications
    assert registered == []
