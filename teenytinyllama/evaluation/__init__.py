"""Evaluation: what a finished model scores on Portuguese benchmarks and on held-out text. Nothing here trains."""
