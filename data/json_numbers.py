"""Numbers in JSON, which has no word for what is not finite."""

from __future__ import annotations

import math
from typing import Any


def with_null(value: Any) -> Any:
    """Dictionaries, lists and what is in them, with None in place of NaN and infinite numbers."""
    if isinstance(value, dict):
        return {key: with_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
