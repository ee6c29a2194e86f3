"""What the tests of several benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.load import LoadGeneratorError, build_load_generator


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_load_generator(tmp_path_factory.mktemp("built") / "load")
    except LoadGeneratorError as missing:
        if "apt-get" not in str(missing):
            raise
        pytest.skip(str(missing))
