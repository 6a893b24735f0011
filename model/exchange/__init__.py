"""Weights of other programs, there and back."""
