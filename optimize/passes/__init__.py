"""Exact rewrites of an fp32 ONNX graph: fewer nodes, the same answers."""
