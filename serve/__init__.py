"""Stage 3: a repository of bundles in, a gRPC server out."""

if not __name__.startswith("edgewright."):
    raise ImportError(
        "import this package as edgewright.serve: as serve, every class would exist twice"
    )
