"""Inner steps: a batch of objectives and the optimizer that runs on them, step after step, and back."""
