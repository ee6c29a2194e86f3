"""Texts in, scores out: what every peer computes, with the libraries that it would take for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.servers.job import ServeJob

_PARTS: Final = {
    "input_ids": "ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "type_ids",
}


class Classifier:
    """A session and a tokenizer, which cuts, and pads to the longest text of a batch."""

    def __init__(self, job: ServeJob) -> None:
        folder = Path(job.preprocessing)
        settings = json.loads((folder / "preprocess.json").read_bytes())
        self._names = settings["input_names"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(settings["max_length"])
        self._tokenizer.enable_padding(pad_id=settings["pad_token_id"])
        self._session = _session(job)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Softmax scores (texts, classes)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        arrays = {
            name: np.array([getattr(each, _PARTS[name]) for each in encoded], np.int64)
            for name in self._names
        }
        logits = self._session.run(None, arrays)[0]
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponents / exponents.sum(axis=-1, keepdims=True)


def _session(job: ServeJob) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As edgewright has it: idle threads would take the core that the network needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in job.session_options.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
