"""Which tensors a model takes and gives, and how they become rows: for the Open Inference Protocol.

An example goes in as it is, BYTES "text" or "image"; or preprocessed, as the arrays that the
model itself reads ("input_ids", "pixel_values").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.model_file import FEATURES, LOGITS
from edgewright.preprocess import ImagePreprocessor, PixelRow, Row, TextPreprocessor, TokenRow
from edgewright.serve.models import ServedModel
from edgewright.serve.tensors import BYTES, FP32, INT64, TensorType, fault

_DATATYPES: Final = {"int64": INT64, "float32": FP32}
# How far beyond what preprocessing gives a pixel may be: enough for other normalisations, too
# little to overflow in half precision.
_PIXEL_ROOM: Final = 10


def example_type(model: ServedModel) -> TensorType:
    """Examples as they are: texts in UTF-8, or whole image files."""
    return TensorType(model.kind.name, BYTES, (-1, 1))


def array_types(model: ServedModel) -> list[TensorType]:
    """The arrays that the model reads; given together, in place of examples."""
    preprocessor = model.preprocessor
    datatype = _DATATYPES[preprocessor.input_dtype]
    return [
        TensorType(name, datatype, preprocessor.input_shape) for name in preprocessor.input_names
    ]


def output_types(model: ServedModel) -> list[TensorType]:
    """What the model answers, in the order of an answer to a call that asks for nothing."""
    return [
        TensorType("label", BYTES, (-1,)),
        TensorType("score", FP32, (-1,)),
        TensorType("scores", FP32, (-1, len(model.labels))),
        TensorType("prediction_id", BYTES, (-1,)),
    ]


def extra_types(model: ServedModel) -> list[TensorType]:
    """What the model answers where it is asked for by name."""
    width = model.features_width
    features = [] if width is None else [TensorType(FEATURES, FP32, (-1, width))]
    return [TensorType(LOGITS, FP32, (-1, len(model.labels))), *features]


def rows_of(model: ServedModel, arrays: Mapping[str, NDArray[Any]]) -> Sequence[Row]:
    """One row for each of the arrays' rows.

    Raises:
        InputError: their shapes differ, or a value is none that preprocessing could have given.
    """
    preprocessor = model.preprocessor
    if isinstance(preprocessor, TextPreprocessor):
        return _token_rows(preprocessor, arrays)
    assert isinstance(preprocessor, ImagePreprocessor)
    (values,) = arrays.values()
    return _pixel_rows(preprocessor, values)


def _pixel_rows(preprocessor: ImagePreprocessor, values: NDArray[Any]) -> list[Row]:
    (name,) = preprocessor.input_names
    most = _PIXEL_ROOM * preprocessor.largest_value
    if not (np.abs(values) <= most).all():  # nor NaN
        raise fault(name, f"holds a value that is no number from {-most:g} to {most:g}")
    return [PixelRow(picture) for picture in values]


def _token_rows(preprocessor: TextPreprocessor, arrays: Mapping[str, NDArray[Any]]) -> list[Row]:
    ids = arrays["input_ids"]
    rows, width = ids.shape
    for name, array in arrays.items():
        if array.shape != ids.shape:
            raise fault(name, f"has shape {list(array.shape)}, but input_ids {list(ids.shape)}")
    if width > preprocessor.max_length:
        raise fault(
            "input_ids",
            f"has rows of {width} tokens and the model reads {preprocessor.max_length}; cut them",
        )
    mask = arrays.get("attention_mask", np.ones_like(ids))
    types = arrays.get("token_type_ids")
    if types is None:
        types = np.zeros_like(ids)
    else:
        (single,) = preprocessor.encode(["a"])
        _check_range("token_type_ids", types, int(single.token_type_ids.max(initial=0)))
    lengths = _lengths(mask, preprocessor.settings.padding_side)
    _check_range("input_ids", ids, preprocessor.largest_token_id)
    left = preprocessor.settings.padding_side == "left"
    kept = [slice(width - n, width) if left else slice(0, n) for n in lengths]
    return [
        TokenRow(ids[row, kept[row]], types[row, kept[row]], truncated=False) for row in range(rows)
    ]


def _lengths(mask: NDArray[Any], padding_side: str) -> list[int]:
    """Tokens of each row, from a mask of ones and, on the side of padding, zeros."""
    lengths = (mask == 1).sum(axis=1)
    places = np.arange(mask.shape[1])
    if padding_side == "left":
        places = places[::-1]
    wanted = places < lengths[:, None]
    wrong = np.flatnonzero((mask != wanted).any(axis=1) | (lengths == 0))
    if wrong.size:
        raise fault(
            "attention_mask",
            f"has a row {wrong[0]} that is not ones for the text and zeros on the "
            f"{padding_side}, where this model is padded",
        )
    counted: list[int] = lengths.tolist()
    return counted


def _check_range(name: str, array: NDArray[Any], most: int) -> None:
    wrong = np.argwhere((array < 0) | (array > most))
    if wrong.size:
        row, place = wrong[0]
        raise fault(name, f"holds {array[row, place]} at [{row}, {place}]; 0 to {most} is expected")
