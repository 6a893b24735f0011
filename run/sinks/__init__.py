"""Where a run's records go. `metrics.jsonl` in the run folder is the truth, all others are views of it."""
