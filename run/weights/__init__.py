"""Which weights a run starts with, which of its checkpoints is the best, and weights between two runs."""
