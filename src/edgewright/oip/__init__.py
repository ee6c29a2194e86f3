"""The Open Inference Protocol, package ``inference``: code that ``make protos`` makes from ``protos/``.

For the server alone: protobuf keeps one definition of a name in a process, and Triton's own client
brings another.
"""
