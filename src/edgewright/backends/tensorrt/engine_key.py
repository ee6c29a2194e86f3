"""What an engine was built from and for: change one of these and it must be built again."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgewright.backends.cuda import Gpu
from edgewright.backends.tensorrt.builder import FLAGS
from edgewright.backends.tensorrt.profiles import Profile, format_profiles
from edgewright.manifest import canonical_json, sha256_bytes, sha256_file


@dataclass(frozen=True)
class EngineKey:
    """Equal keys mean that one engine serves both."""

    onnx_sha256: str  # with external data
    profiles: str
    flags: str
    tensorrt: str  # "11.4.0.106"
    gpu: str  # "NVIDIA H200"
    compute_capability: str  # "9.0"
    driver: str
    cuda: str
    system: str  # "Linux x86_64"

    @classmethod
    def of(
        cls,
        onnx: Path,
        profiles: Sequence[Profile],
        *,
        workspace_bytes: int,
        tensorrt: str,
        gpu: Gpu,
    ) -> EngineKey:
        """The key of an engine of this file on this host."""
        return cls(
            onnx_sha256=onnx_sha256(onnx),
            profiles=format_profiles(profiles),
            flags=f"{FLAGS},workspace={workspace_bytes}",
            tensorrt=tensorrt,
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            driver=gpu.driver,
            cuda=gpu.cuda,
            system=f"{platform.system()} {platform.machine()}",
        )

    @property
    def digest(self) -> str:
        """Names the engine's files."""
        return sha256_bytes(canonical_json(self.to_json()))

    @property
    def timing_digest(self) -> str:
        """Names the timing cache, which every engine of this GPU and TensorRT shares."""
        host = [self.tensorrt, self.gpu, self.compute_capability, self.driver, self.cuda]
        return sha256_bytes(canonical_json(host))

    def differences(self, other: EngineKey) -> tuple[str, ...]:
        """In which fields ``other`` is not this, as "tensorrt 10.16.1.11, not 11.4.0.106"."""
        return tuple(
            f"{each.name} {getattr(other, each.name)}, not {getattr(self, each.name)}"
            for each in fields(self)
            if getattr(other, each.name) != getattr(self, each.name)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineKey:
        """The key that ``to_json`` wrote."""
        return cls(**value)


def onnx_sha256(onnx: Path) -> str:
    """Identity of an ONNX file with its external data: NAME.data or NAME_data beside it."""
    digest = hashlib.sha256(sha256_file(onnx).encode())
    for suffix in (".data", "_data"):
        data = onnx.with_name(onnx.name + suffix)
        if data.is_file():
            digest.update(f"{suffix}:{sha256_file(data)}".encode())
    return digest.hexdigest()
