"""`train.py --describe` and `--plan`: parameters, memory and traffic of a run on any number of ranks."""

from plan.dealing import dealing_of
from plan.expected import expected
from plan.report import plan, render
from plan.sizes import describe

__all__ = ["dealing_of", "describe", "expected", "plan", "render"]
