"""Stage 1: labelled examples in, a fine-tuned and evaluated checkpoint out."""

if not __name__.startswith("edgewright."):
    raise ImportError(
        "import this package as edgewright.finetune: as finetune, every class would exist twice"
    )
