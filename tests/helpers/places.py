"""Where the tests look for files."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
"""Real data and the full golden set, on machines that have them beside the checkout."""
