"""TensorRT behind the contract of every runtime: an ONNX file goes in, a session comes out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from edgewright.backends.cuda import this_gpu
from edgewright.backends.tensorrt.builder import WORKSPACE_BYTES, build
from edgewright.backends.tensorrt.engine import Engine
from edgewright.backends.tensorrt.engine_cache import EngineCache
from edgewright.backends.tensorrt.engine_key import EngineKey
from edgewright.backends.tensorrt.library import tensorrt
from edgewright.backends.tensorrt.profiles import Profile, parse_profiles
from edgewright.backends.tensorrt.session import TensorRtSession
from edgewright.errors import ConfigError, IntegrityError
from edgewright.state_dir import StateDir

PROFILES: Final = "profiles"  # session option: see ``profiles``
WORKSPACE_MIB: Final = "workspace_mib"  # session option: scratch memory of one layer, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorRtBackend:
    """Builds engines of ONNX files, keeps them, and loads them.

    ``engines`` None means the default state folder's.
    """

    engines: Path | None = None
    name: ClassVar[str] = "tensorrt"

    @property
    def cache(self) -> EngineCache:
        """Where engines are kept."""
        return EngineCache(self.engines or StateDir.at(None).engines)

    def runtime(self) -> str:
        """Library, version and GPU: an engine is built for one GPU.

        Raises:
            BackendUnavailableError: TensorRT or cuda-python is missing, or there is no GPU.
        """
        return f"tensorrt {tensorrt().__version__} on {this_gpu()}"

    def load(
        self, path: Path, *, threads: int, options: Mapping[str, str] | None = None
    ) -> TensorRtSession:
        """Load the engine of an ONNX file, and build it first where there is none that fits.

        Args:
            path: with explicit QuantizeLinear and DequantizeLinear for int8, converted for fp16.
            threads: not used: the GPU computes.
            options: ``profiles`` is wanted; ``workspace_mib`` may be there.

        Raises:
            ConfigError: an option is missing or unknown, or a profile does not fit.
            BackendUnavailableError, IntegrityError: as ``builder.build``.
        """
        session = self.load_built(path, options or {})
        if session is not None:
            return session
        self._build(path, options or {})
        built = self.load_built(path, options or {})
        if built is None:
            raise IntegrityError(
                f"the engine of {path} in {self.cache.folder} cannot be read back; check that disk"
            )
        return built

    def load_instances(
        self, path: Path, count: int, *, threads: int, options: Mapping[str, str] | None = None
    ) -> list[TensorRtSession]:
        """Sessions of one engine: the weights lie on the GPU once."""
        first = self.load(path, threads=threads, options=options)
        return [first, *(first.another() for _ in range(count - 1))]

    def load_built(self, path: Path, options: Mapping[str, str]) -> TensorRtSession | None:
        """The session of an engine that was built for this very host; None where there is none.

        Raises:
            BackendUnavailableError: TensorRT or CUDA refuses.
        """
        engine = self.cache.engine(self.key(path, options))
        if engine is None:
            return None
        try:
            return TensorRtSession(Engine(engine, str(path)))
        except IntegrityError as error:
            log.warning("%s", error)
            return None

    def key(self, path: Path, options: Mapping[str, str]) -> EngineKey:
        """What an engine of this file depends on here."""
        profiles, workspace_bytes = _read(options)
        return EngineKey.of(
            path,
            profiles,
            workspace_bytes=workspace_bytes,
            tensorrt=str(tensorrt().__version__),
            gpu=this_gpu(),
        )

    def _build(self, path: Path, options: Mapping[str, str]) -> None:
        profiles, workspace_bytes = _read(options)
        key = self.key(path, options)
        for difference in self.cache.mismatch(key):
            log.warning("the engine of %s is of %s: it is built again", path, difference)
        built = build(
            path,
            profiles,
            workspace_bytes=workspace_bytes,
            timing_cache=self.cache.timing_cache(key),
        )
        self.cache.store(key, built)


def _read(options: Mapping[str, str]) -> tuple[tuple[Profile, ...], int]:
    faults = [
        f"no option {name!r} of TensorRT; there are: {PROFILES}, {WORKSPACE_MIB}"
        for name in options
        if name not in (PROFILES, WORKSPACE_MIB)
    ]
    size = options.get(WORKSPACE_MIB, str(WORKSPACE_BYTES >> 20))
    if not size.isdecimal() or int(size) < 1:
        faults.append(f"{WORKSPACE_MIB} is {size}; it must be a number of MiB, 1 or more")
    if PROFILES not in options:
        faults.append(
            f"TensorRT wants {PROFILES}: SMALLEST,BEST,LARGEST of every input, "
            "as input_ids=1x1,8x128,32x128"
        )
    if faults:
        raise ConfigError(faults)
    return parse_profiles(options[PROFILES]), int(size) << 20


BACKEND: Final = TensorRtBackend()
