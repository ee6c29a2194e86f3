"""TensorRT 10 and 11, driven by their own Python bindings and cuda-python, without torch.

library.py      the library, its version, what it says
builder.py      ONNX file -> engine
engine_key.py   what an engine depends on     engine_cache.py   engines on this host
engine.py       an engine, loaded             session.py        engine -> answers
stream.py       copies and work in order      profiles.py       ranges of shapes
inspection.py   what an engine is made of
backend.py      all of it as a Backend
"""

from edgewright.backends.tensorrt.backend import BACKEND, TensorRtBackend

__all__ = ["BACKEND", "TensorRtBackend"]
