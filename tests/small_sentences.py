"""Sentences of three kinds that a BERT of two layers learns to tell apart in seconds."""

from __future__ import annotations

import numpy as np

LABELS = ("business", "sport", "tech")
WORDS = {
    "business": "bank shares profit market economy trade oil deal sales growth",
    "sport": "match goal coach league player win cup team season final",
    "tech": "software phone online network users computer game digital broadband chip",
}
COMMON = "the a of to in said on for new year with people at first more after will"


def sentences(rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Sentences of common words with a few of the class; every twelfth borrows from another."""
    rng = np.random.default_rng(seed)
    texts, labels, seen = [], [], set[str]()
    while len(texts) < rows:
        label = int(rng.integers(len(LABELS)))
        source = label if rng.random() > 0.08 else int(rng.integers(len(LABELS)))
        words = [
            *rng.choice(WORDS[LABELS[source]].split(), 3),
            *rng.choice(COMMON.split(), rng.integers(4, 14)),
        ]
        text = " ".join(rng.permutation(words))
        if text not in seen:
            seen.add(text)
            texts.append(text)
            labels.append(label)
    return texts, np.array(labels, dtype=np.int64)
