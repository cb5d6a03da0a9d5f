"""Measures of a checkpoint: what `docs/results` and the README say comes from here."""
