"""Frames to patches: crops, augmentation, mixing of a batch, normalisation."""
