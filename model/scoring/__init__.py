"""How read-outs and candidates are compared, and the losses of that."""
