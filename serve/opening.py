"""What of a bundle answers on this host, and how its sessions are opened, in whatever process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgewright.backends import ON_CPU, get_backend
from edgewright.bundle import PREPROCESSING_FOLDER, Bundle
from edgewright.errors import BackendUnavailableError
from edgewright.manifest import check_files
from edgewright.model_file import DATA_SUFFIX
from edgewright.proof.goldens import GoldenResult, check_goldens
from edgewright.proof.host import available_cores, instruction_set
from edgewright.serve.engines import built_engine
from edgewright.serve.host_choice import Choice, ChosenBy, HostOptions, choose
from edgewright.serve.sessions import Sessions

# Beyond some, their answers outrun the event loop.
_MOST_INSTANCES: Final = 8
_INSTANCES_ON_GPU: Final = 2  # while one computes, the other copies
# What computes: an upgrade beside a server that runs gives other processes another.
_LIBRARIES: Final = ("edgewright", "numpy", "tokenizers", "PIL", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Opening:
    """A choice, and what its sessions are opened with."""

    choice: Choice
    runtime: str  # "onnxruntime 1.32.0"
    instances: int
    engine: Sessions | None = None  # open already, where an engine was proven on this host

    @property
    def on_cpu(self) -> bool:
        """Whether another process can compute as well: a GPU has no room for the model twice."""
        return self.choice.variant.backend in ON_CPU

    @property
    def without_threads(self) -> bool:
        """Whether its sessions start no threads, which would be as nice as who opens them."""
        return self.choice.threads == 1 and self.choice.variant.backend == "onnxruntime"

    @property
    def holds(self) -> bool:
        """Whether the certificate is of this runtime and class of instruction set."""
        certificate, isa = self.choice.variant.certificate, self.choice.instruction_set
        return certificate is not None and certificate.holds(self.runtime, isa)

    def sessions(self, bundle: Bundle) -> Sessions:
        """All that may run at once; raises as ``Backend.load``."""
        if self.engine is not None:
            return self.engine
        variant = self.choice.variant
        return Sessions(
            get_backend(variant.backend).load_instances(
                bundle.path / variant.file,
                self.instances,
                threads=self.choice.threads,
                options=variant.session_options,
            )
        )


def opening(
    bundle: Bundle,
    threads: int,
    instances: int | None,
    cores: int | None,
    max_batch: int,
    host: HostOptions,
) -> Opening:
    """How the bundle answers on this host; first an engine that was proven here.

    Args:
        bundle: verified.
        threads: of each session.
        instances: sessions; None for as many as the cores hold.
        cores: that they may keep busy; None for all that this process may use.
        max_batch: rows that one run may hold.
        host: as ``choose``, which also says what is raised.
    """
    engine = built_engine(bundle, host.state_dir, max_batch, instances or _INSTANCES_ON_GPU)
    if engine is not None:
        variant, built, runtime = engine
        isa = host.isa or instruction_set()
        choice = Choice(variant, ChosenBy.HOST, threads, isa)
        return Opening(choice, runtime, len(built), Sessions(built))
    choice = choose(bundle, threads, host)
    runtime = get_backend(choice.variant.backend).runtime()
    return Opening(choice, runtime, instances or _instances(choice, cores))


def check_apart(bundle: Bundle, way: Opening, libraries: Mapping[str, str]) -> GoldenResult:
    """Run the goldens in another process than will answer, as that will, with its ``libraries``.

    Raises:
        IntegrityError: as ``check_goldens``.
        BackendUnavailableError: this process has another version of a library.
    """
    sessions, preprocessor = way.sessions(bundle), bundle.preprocessor()
    for name, version in loaded_libraries().items():
        if libraries.get(name, version) != version:
            raise BackendUnavailableError(
                f"{name} {version} is installed and the server runs {libraries[name]}, so what is "
                "proven would not be what answers; start the server again"
            )
    return check_goldens(bundle, way.choice.variant, sessions, preprocessor, same_host=way.holds)


def check_what_answers(bundle: Bundle, way: Opening) -> None:
    """Check once more the files that were read to answer from; raises as ``check_files``."""
    file = way.choice.variant.file
    read = (f"{PREPROCESSING_FOLDER}/", file + DATA_SUFFIX)
    files = bundle.artifact.manifest["files"]
    check_files(bundle.artifact, [name for name in files if name == file or name.startswith(read)])


def loaded_libraries() -> dict[str, str]:
    """Versions of those that compute and that this process has loaded."""
    loaded = {name: sys.modules[name] for name in _LIBRARIES if name in sys.modules}
    return {name: str(module.__version__) for name, module in loaded.items()}


def _instances(choice: Choice, cores: int | None = None) -> int:
    if choice.variant.backend in ON_CPU:
        return instances_here(choice.threads, cores)
    return _INSTANCES_ON_GPU


def instances_here(threads: int, cores: int | None = None) -> int:
    """As many as the cores, by default all that this process may use, can run on ``threads``."""
    return min(max(1, (cores or available_cores()) // threads), _MOST_INSTANCES)
