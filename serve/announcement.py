"""What a server that answers tells of itself, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewright.serve.host_choice import ChosenBy
from edgewright.serve.ports import at
from edgewright.serve.server import Ready


def told(ready: Ready) -> dict[str, Any]:
    """The object of ``--json``; of several processes it is what the first one tells."""
    return {
        "host": ready.host,
        "port": ready.port,
        "metrics_port": ready.metrics_port,
        "admin_port": ready.admin_port,
        "ready_ms": round(ready.ready_ms, 1),
        "models": [
            {
                "name": model.name,
                "version": model.version,
                "variant": model.variant.name,
                "runtime": model.runtime,
                "instances": model.instances,
                "verdict": str(model.verdict),
                "chosen_by": str(model.chosen_by),
            }
            for model in ready.models
        ],
    }


def lines(announced: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    host, processes = announced["host"], announced.get("processes", [])
    ports = [each["metrics_port"] for each in processes] or [announced["metrics_port"]]
    admin = announced["admin_port"]
    return [
        *(_line(model) for model in announced["models"]),
        f"ready in {announced['ready_ms'] / 1000:.1f} s: gRPC on {at(host, announced['port'])}"
        + (f" from {len(processes)} processes" if processes else "")
        + ", metrics on "
        + ", ".join(at(host, port) for port in ports)
        + ("" if admin is None else f", admin on port {admin}"),
    ]


def _line(model: Mapping[str, Any]) -> str:
    here = ", chosen on this host" if model["chosen_by"] == ChosenBy.HOST else ""
    name, version = model["name"], model["version"]
    return f"{name} version {version}: {model['variant']}{here}, {model['verdict']}"
