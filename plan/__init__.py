"""`train.py --describe` and `--plan`: parameters, memory and traffic of a run on any number of ranks."""

from plan.expected import expected
from plan.report import plan, render
from plan.sizes import describe

__all__ = ["describe", "expected", "plan", "render"]
