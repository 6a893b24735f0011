"""Looks into trained runs: each module is a command, `python -m analysis.NAME --run RUN`, and keeps what it finds in RUN/analysis."""
