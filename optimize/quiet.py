"""Other people's libraries, held to errors: stdout is ours, for data."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings, log lines below ERROR and whatever is printed, for the length of the block.

    For exporters and quantisers, which tell of their own deprecations and draw progress bars on
    stdout. What they make is checked by its answers, not by what they say of it.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
