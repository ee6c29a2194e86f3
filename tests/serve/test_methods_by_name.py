"""A server that keeps one pending call for all methods, not one for each."""

from __future__ import annotations

from typing import Any

from edgewright.serve.methods_by_name import MethodsByName
from edgewright.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server


class Spy:
    def __init__(self) -> None:
        self.generic: list[Any] = []
        self.registered: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, _handlers: Any) -> None:
        self.registered.append(service)


class Details:
    method = "/edgewright.v1.ModelService/GetModel"
    invocation_metadata = ()


def test_generated_code_adds_its_methods_by_name_and_registers_none() -> None:
    server = Spy()
    servicer = ModelServiceServicer()
    add_ModelServiceServicer_to_server(servicer, MethodsByName(server))  # type: ignore[no-untyped-call]
    (service,) = server.generic
    assert service.service(Details).unary_unary == servicer.GetModel
    assert server.registered == []
    add_ModelServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    assert server.registered == ["edgewright.v1.ModelService"]  # which is what is left out
