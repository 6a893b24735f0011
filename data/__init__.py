"""Bytes to task batches. Imports nothing of ours outside data/; knows its rank as Share(index, count)."""
