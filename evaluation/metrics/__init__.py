"""Scores of predictions over a whole corpus; nothing here knows of models or shards."""
