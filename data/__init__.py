"""Bytes to task batches. Imports nothing of this program outside data/, and knows its rank only as Shard(index, count)."""
