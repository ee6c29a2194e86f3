"""Proof that a variant may be served: bounds, certificates, their ledger, goldens, and the host."""
