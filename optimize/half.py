"""An fp16 file of an fp32 one: TensorRT is strongly typed, so the file decides the precision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

# Sums of squares pass 65,504, the largest fp16 number, and softmax loses what is small.
_KEPT_FP32: Final = ("LayerNormalization", "Pow", "ReduceMean", "Softmax", "Sqrt")


def write_half(source: Path, target: Path) -> None:
    """Convert weights and operators to fp16; inputs and outputs keep their types.

    Constants that fp16 cannot hold are cut to its largest and least numbers: a mask's -3.4e38
    becomes -65504, which softmax takes for the same.
    """
    import onnx
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every constant that is cut
        model = convert_float_to_float16(
            onnx.load(str(source)),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_FP32],
        )
    target.write_bytes(model.SerializeToString(deterministic=True))
