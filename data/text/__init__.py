"""CLIP's byte-pair tokens, and the vocabulary of a run."""
