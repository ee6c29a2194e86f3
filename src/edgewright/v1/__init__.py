"""The typed gRPC API, package ``edgewright.v1``: code that ``make protos`` makes from ``protos/``."""
