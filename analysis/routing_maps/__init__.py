"""Which expert serves which patch, frame and word.

choices     what each decision chose, taken from the routers while a batch passes
samples     samples of the run's tasks with the choices for their patches and words
drawing     pictures of them; page: the same to be played with
"""
