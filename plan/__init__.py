"""`train.py --plan`: memory and traffic of a rank on any number of ranks."""

from plan.report import plan, render

__all__ = ["plan", "render"]
