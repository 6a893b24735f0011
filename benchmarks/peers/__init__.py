"""Other people's code on the same batches as ours; peers.md beside this folder says how to run it."""
