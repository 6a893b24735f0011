"""Each public layout is a command: what it expects, and the samples that it makes of it."""
