"""From labelled examples to a small, fast, certified model behind gRPC, and back again.

The stages (``edgewright.finetune``, ``edgewright.optimize``, ``edgewright.serve``) never import
each other: they meet in artifacts on disk, whose formats this package holds.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("edgewright")
except PackageNotFoundError as error:
    raise ImportError(
        "edgewright is not installed, only lying on the path; run `pip install -e .` first"
    ) from error

__all__ = ["__version__"]
