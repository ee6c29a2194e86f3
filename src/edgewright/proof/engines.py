"""Engines of a bundle on this host: built, held against its goldens, and remembered if sound.

A bundle's prepared variants have files, profiles and the scores that the goldens must get. Here
each engine is built and runs them. What is proven is recorded in the state folder with the key of
the engine; a server takes the engine only while this host still has that key.

That the goldens come out shows that the engine computes this model. It is no certificate: a loss
of accuracy within the budget is shown on labelled rows alone. So an engine is served UNVERIFIED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from edgewright.backends.tensorrt.backend import TensorRtBackend
from edgewright.backends.tensorrt.engine_key import EngineKey
from edgewright.backends.tensorrt.session import TensorRtSession
from edgewright.bundle import Bundle, Variant
from edgewright.errors import ArtifactNotFoundError, ConfigError, IntegrityError
from edgewright.preprocess import Preprocessor
from edgewright.proof.goldens import check_goldens
from edgewright.state_dir import StateDir

RECORD: Final = "engines"  # in the bundle's part of the state folder


@dataclass(frozen=True)
class EngineProof:
    """What the goldens showed of one engine on this host."""

    variant: str
    key: EngineKey
    goldens: int
    labels_changed: int  # of goldens, all of them closer than the margin
    largest_difference: float  # of a score
    integer_products: int
    float_products: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineProof:
        """The proof that ``to_json`` wrote."""
        return cls(**{**value, "key": EngineKey.from_json(value["key"])})


def build_and_prove(
    bundle: Bundle,
    state: StateDir,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[EngineProof], list[str]]:
    """Build the engine of every prepared variant, prove it, and record what is proven.

    Args:
        bundle: verified.
        state: where engines and the record go; the bundle is not written.
        tell: gets a line before each variant.

    Returns:
        The proofs, and why each of the others has none.

    Raises:
        ArtifactNotFoundError: the bundle has nothing to build.
        BackendUnavailableError: TensorRT, cuda-python or a GPU is missing.
    """
    if not bundle.prepared:
        raise ArtifactNotFoundError(
            f"{bundle.path} holds nothing for TensorRT; make such a bundle with "
            "`edgewright optimize CHECKPOINT -o BUNDLE --backend tensorrt`"
        )
    backend = TensorRtBackend(state.engines)
    backend.runtime()
    preprocessor: Preprocessor = bundle.preprocessor()
    proofs, faults = [], []
    for variant in bundle.prepared:
        tell(variant.name)
        try:
            proofs.append(_prove(bundle, variant, preprocessor, backend))
        except (ConfigError, IntegrityError) as error:
            faults.append(f"{variant.name}: {error}")
    record = {"proofs": [each.to_json() for each in proofs]}
    state.write(bundle.artifact.manifest_sha256, RECORD, record)
    return proofs, faults


def proven_session(
    bundle: Bundle, state: StateDir
) -> tuple[Variant, TensorRtSession, TensorRtBackend] | None:
    """The first prepared variant with an engine that was proven on this host, loaded; else None.

    Raises:
        BackendUnavailableError: TensorRT, cuda-python or the GPU is missing.
        IntegrityError: the record of proofs was altered.
    """
    record = state.read(bundle.artifact.manifest_sha256, RECORD) if bundle.prepared else None
    proofs = [EngineProof.from_json(each) for each in (record or {}).get("proofs", ())]
    by_name = {each.variant: each for each in proofs}
    backend = TensorRtBackend(state.engines)
    for variant in bundle.prepared:
        proof, file = by_name.get(variant.name), bundle.path / variant.file
        if proof is not None and proof.key == backend.key(file, variant.session_options):
            session = backend.load_built(file, variant.session_options)
            if session is not None:
                return variant, session, backend
    return None


def _prove(
    bundle: Bundle, variant: Variant, preprocessor: Preprocessor, backend: TensorRtBackend
) -> EngineProof:
    file, options = bundle.path / variant.file, variant.session_options
    session = backend.load(file, threads=1, options=options)
    result = check_goldens(bundle, variant, session, preprocessor, same_host=False)
    placement = session.placement()
    return EngineProof(
        variant=variant.name,
        key=backend.key(file, options),
        goldens=result.rows,
        labels_changed=result.labels_changed,
        largest_difference=result.largest_difference,
        integer_products=placement.integer_products,
        float_products=sum(placement.float_products.values()),
    )
