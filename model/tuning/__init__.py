"""Beginning from another model, and training a part of it."""
