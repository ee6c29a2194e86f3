"""Goldens: a few examples with the answers they got when the bundle was made.

A server runs them before it answers anyone. The texts must still become the same token ids, and the
images the same pixels, to the bit. Where the runtime and the class of instruction set are the
certified ones, every score must lie within ``SCORE_TOLERANCE`` of the recorded one. Elsewhere
integer kernels round differently (int8 logits were seen to move by 0.14 between two hosts), so only
a label that was decided by a margin of more than ``MARGIN_TOLERANCE`` must come out again, and the
verdict becomes UNVERIFIED.

    goldens.npz    inputs/<name>   int64 (rows, length), padded to the longest row; of images
                                   inputs/pixels, uint8 (rows, height, width, 3), from which the
                                   model's arrays are computed
                   scores/<variant name>   float32 (rows, classes), softmax
                   batch_rows      how many rows ran together, in order, each batch as wide as its
                                   longest row; a variant that is not batch-invariant ran one by one
    goldens.json   the raw texts, or the image files in base64, in the same order; absent under
                   --no-raw-examples

The goldens come from the search split: certify rows are shown nowhere.
"""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, softmax
from edgewright.bundle import Bundle, Variant, Verdict
from edgewright.errors import IntegrityError
from edgewright.kinds import IMAGE
from edgewright.manifest import canonical_json
from edgewright.metrics import Labels
from edgewright.preprocess import DecodedRow, Preprocessor, Row, TokenRow

GOLDENS_FILE: Final = "goldens.npz"
RAW_FILE: Final = "goldens.json"
PIXELS: Final = "pixels"
ROWS: Final = 32
BATCH_ROWS: Final = 8
SCORE_TOLERANCE: Final = 1e-3  # of a softmax score; repeated runs on one host differ by about 1e-6
MARGIN_TOLERANCE: Final = 0.5  # logits: two that move towards each other by 0.14, with some room

Arrays = Mapping[str, NDArray[Any]]
Raw = Sequence[str] | Sequence[bytes]


@dataclass(frozen=True)
class GoldenResult:
    """What the goldens showed of one variant here."""

    verdict: Verdict  # the certificate's where it holds here, else UNVERIFIED
    rows: int
    largest_difference: float  # of a score, over all rows and classes
    labels_changed: int  # rows whose label differs, all of them closer than the margin


@dataclass(frozen=True, eq=False)
class Goldens:
    """Examples as arrays, the rows first, and each variant's scores on them."""

    inputs: Arrays
    scores: Mapping[str, NDArray[np.float32]]  # variant name -> (rows, classes)
    batch_rows: int
    raw: tuple[str, ...] | tuple[bytes, ...] | None  # texts or image files; None: arrays only

    def save(self, folder: Path) -> None:
        """Write goldens.npz and, with raw examples, goldens.json: the same bytes every time."""
        arrays: dict[str, Any] = {f"inputs/{name}": value for name, value in self.inputs.items()}
        arrays |= {f"scores/{name}": self.scores[name] for name in sorted(self.scores)}
        arrays["batch_rows"] = np.int64(self.batch_rows)
        np.savez(folder / GOLDENS_FILE, **arrays)
        if self.raw is not None:
            (folder / RAW_FILE).write_bytes(canonical_json(_raw_record(self.raw)))

    @classmethod
    def load(cls, folder: Path) -> Goldens:
        """Read what ``save`` wrote.

        Raises:
            IntegrityError: a file is missing or is not what ``save`` writes.
        """
        file, raw_file = folder / GOLDENS_FILE, folder / RAW_FILE
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            raw = _read_raw(json.loads(raw_file.read_bytes())) if raw_file.exists() else None
            return cls(
                inputs=_below("inputs/", arrays),
                scores=_below("scores/", arrays),
                batch_rows=int(arrays["batch_rows"]),
                raw=raw,
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise IntegrityError(
                f"the goldens in {folder} cannot be read ({error}); make the bundle again"
            ) from error

    def rows(self, preprocessor: Preprocessor) -> list[Row]:
        """The examples unpadded, as ``preprocessor`` made them."""
        if preprocessor.kind is IMAGE:
            return [DecodedRow(pixels) for pixels in self.inputs[PIXELS]]
        ids = self.inputs["input_ids"]
        types = self.inputs.get("token_type_ids", np.zeros_like(ids))
        used = self.inputs["attention_mask"].astype(bool)
        return [
            TokenRow(tokens[mask], kinds[mask], truncated=False)
            for tokens, kinds, mask in zip(ids, types, used, strict=True)
        ]


def choose_rows(labels: Labels, count: int = ROWS) -> NDArray[np.int64]:
    """Up to ``count`` row numbers, ascending, taken from every class in turn.

    ``labels`` holds class indices, shape (rows,). Within a class the first rows are taken.
    """
    rank = np.zeros(len(labels), dtype=np.int64)  # how many rows of its class stand before a row
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    return np.sort(np.lexsort((labels, rank))[:count])


def make_goldens(
    raw: Raw,
    preprocessor: Preprocessor,
    sessions: Mapping[str, tuple[Session, bool]],
    *,
    keep_raw: bool,
) -> Goldens:
    """Run every variant over texts or image files.

    ``sessions`` maps its name to (session, row by row).
    """
    inputs = _stored(preprocessor, preprocessor.encode(raw))
    scores = {
        name: golden_scores(session, preprocessor, inputs, 1 if row_by_row else BATCH_ROWS)
        for name, (session, row_by_row) in sessions.items()
    }
    return Goldens(inputs, scores, BATCH_ROWS, _kept(raw) if keep_raw else None)


def golden_scores(
    session: Session,
    preprocessor: Preprocessor,
    inputs: Arrays,
    batch_rows: int,
    runs_at_once: int = 1,
) -> NDArray[np.float32]:
    """Scores of shape (rows, classes): rows in order, ``batch_rows`` at a time, padding cut off.

    ``runs_at_once`` may be above 1 where ``session`` can be run from several threads.
    """
    output, count = session.outputs[0].name, len(next(iter(inputs.values())))

    def scores(start: int) -> NDArray[np.float32]:
        arrays = _batch(preprocessor, inputs, slice(start, start + batch_rows))
        feed = {
            spec.name: np.ascontiguousarray(arrays[spec.name], dtype=spec.dtype)
            for spec in session.inputs
        }
        return softmax(session.run(feed)[output])

    with ThreadPoolExecutor(runs_at_once) as pool:
        in_turn = pool.map if runs_at_once > 1 else map
        return np.concatenate(list(in_turn(scores, range(0, count, batch_rows))))


def _stored(preprocessor: Preprocessor, rows: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """What goldens.npz keeps of rows: token arrays, or of images the pixels, four times smaller."""
    if preprocessor.kind is IMAGE:
        return {PIXELS: np.stack([row.pixels for row in rows])}
    return preprocessor.pad(rows).arrays


def _batch(preprocessor: Preprocessor, inputs: Arrays, rows: slice) -> Arrays:
    """The model's arrays of some rows, from what is kept of them."""
    if preprocessor.kind is IMAGE:
        return preprocessor.pad([DecodedRow(pixels) for pixels in inputs[PIXELS][rows]]).arrays
    used = np.flatnonzero(inputs["attention_mask"][rows].any(axis=0))
    columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
    return {name: array[rows, columns] for name, array in inputs.items()}


def _kept(raw: Raw) -> tuple[str, ...] | tuple[bytes, ...]:
    texts = [each for each in raw if isinstance(each, str)]
    return tuple(texts) if texts else tuple(each for each in raw if isinstance(each, bytes))


def _raw_record(raw: Raw) -> dict[str, list[str]]:
    images = [base64.b64encode(each).decode() for each in raw if isinstance(each, bytes)]
    return {"images": images} if images else {"texts": [str(each) for each in raw]}


def _read_raw(record: Mapping[str, Sequence[str]]) -> tuple[str, ...] | tuple[bytes, ...]:
    if "images" in record:
        return tuple(base64.b64decode(each, validate=True) for each in record["images"])
    return tuple(record["texts"])


def check_goldens(
    bundle: Bundle,
    variant: Variant,
    session: Session,
    preprocessor: Preprocessor,
    *,
    same_host: bool,
    runs_at_once: int = 1,
) -> GoldenResult:
    """Run the bundle's goldens through ``session`` as ``variant`` is served.

    Args:
        bundle: verified.
        variant: the one that ``session`` has loaded.
        session: loaded on this host.
        preprocessor: the bundle's.
        same_host: whether the runtime and the class of instruction set are the certified ones.
        runs_at_once: as ``golden_scores``.

    Raises:
        IntegrityError: names the first golden whose token ids, pixels, score or label differs.
    """
    goldens = Goldens.load(bundle.path)
    if variant.name not in goldens.scores:
        raise IntegrityError(f"{bundle.path / GOLDENS_FILE} has no scores of {variant.name}")
    _check_inputs(goldens, preprocessor, bundle.path)
    recorded = goldens.scores[variant.name]
    batch_rows = goldens.batch_rows if variant.batch_invariant else 1
    found = golden_scores(session, preprocessor, goldens.inputs, batch_rows, runs_at_once)
    where = f"{bundle.path}: {variant.name}"
    if found.shape != recorded.shape:
        raise IntegrityError(f"{where} gives scores of shape {found.shape}, not {recorded.shape}")
    difference = np.abs(found - recorded).max(axis=1)
    changed = found.argmax(axis=1) != recorded.argmax(axis=1)
    if same_host:
        _refuse_first(~(difference <= SCORE_TOLERANCE), difference, where)
    else:
        decided = _margins(recorded) > MARGIN_TOLERANCE
        _refuse_first(~np.isfinite(difference) | (changed & decided), difference, where)
    certified = variant.certificate.verdict if variant.certificate else Verdict.UNVERIFIED
    return GoldenResult(
        verdict=certified if same_host else Verdict.UNVERIFIED,
        rows=len(recorded),
        largest_difference=float(difference.max(initial=0.0)),
        labels_changed=int(changed.sum()),
    )


def _check_inputs(goldens: Goldens, preprocessor: Preprocessor, folder: Path) -> None:
    if PIXELS in goldens.inputs or preprocessor.kind is IMAGE:
        _check_pixels(goldens, preprocessor, folder)
    else:
        _check_token_ids(goldens, preprocessor, folder)


def _check_pixels(goldens: Goldens, preprocessor: Preprocessor, folder: Path) -> None:
    recorded = goldens.inputs.get(PIXELS)
    height, width = preprocessor.input_shape[-2:]
    if recorded is None or recorded.dtype != np.uint8 or recorded.shape[1:] != (height, width, 3):
        raise IntegrityError(f"{folder / GOLDENS_FILE} holds no pixels of {height} x {width}")
    for index, row in enumerate(preprocessor.encode(goldens.raw) if goldens.raw else []):
        if not np.array_equal(row.pixels, recorded[index]):
            raise IntegrityError(
                f"golden {index} of {folder}: its image becomes other pixels than recorded; "
                "another version of Pillow may be installed than the bundle was made with"
            )


def _check_token_ids(goldens: Goldens, preprocessor: Preprocessor, folder: Path) -> None:
    if goldens.raw is None:
        return
    width = goldens.inputs["attention_mask"].shape[1]
    rows = preprocessor.encode(goldens.raw)
    for index, row in enumerate(rows):
        if len(row) > width or any(
            not np.array_equal(array[0], goldens.inputs[name][index])
            for name, array in preprocessor.pad([row], width).arrays.items()
        ):
            raise IntegrityError(
                f"golden {index} of {folder}: its text becomes other token ids than recorded; "
                "another version of tokenizers may be installed than the bundle was made with"
            )


def _refuse_first(wrong: NDArray[np.bool_], difference: NDArray[np.float32], where: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        raise IntegrityError(
            f"{where}: golden {index} gets other scores than recorded (by {difference[index]:.3g}, "
            f"{int(wrong.sum())} of {len(wrong)} goldens differ); this host or its runtime does "
            "not compute what was certified: optimize again here, or serve on another host"
        )


def _margins(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits between the best and the second class, shape (rows,), from softmax scores."""
    best = np.sort(scores.astype(np.float64), axis=1)[:, ::-1]
    if best.shape[1] < 2:
        return np.full(len(best), np.inf)
    tiny = np.finfo(np.float64).tiny
    return np.asarray(np.log(best[:, 0]) - np.log(np.maximum(best[:, 1], tiny)))


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
