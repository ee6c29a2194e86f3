"""Stage 2: a checkpoint in, a certified bundle of model variants out."""

if not __name__.startswith("edgewright."):
    raise ImportError(
        "import this package as edgewright.optimize: as optimize, every class would exist twice"
    )
