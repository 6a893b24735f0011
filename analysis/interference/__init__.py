"""How much a step on one task helps or hurts another (papers.md 2.9).

metric      the arithmetic, from gradients that are asked for one at a time
gradients   gradients of a run's tasks, example by example
tables      what is kept and shown
"""
