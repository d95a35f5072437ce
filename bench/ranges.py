"""Ranges of options, written as intervals."""

from __future__ import annotations

import math

from bench.errors import UserError


def require_within(interval: str, prefix: str = "--model.", /, **options: float) -> None:
    """Checks that options lie in an interval.

    Args:
        interval: as mathematics writes it: ``[1, 8]``, ``(0, 1]``, or ``[1, inf)`` without an upper limit.
        prefix: what comes before the names in messages.
        **options: values by name. One that is not finite is out of range.

    Raises:
        UserError: names the first option that is out of range, its value and the limits.
    """
    lower, upper = (float(limit) for limit in interval[1:-1].split(", "))
    limits = [f"{'at least' if interval[0] == '[' else 'above'} {lower:.16g}"]
    if upper < math.inf:
        limits.append(f"{'at most' if interval[-1] == ']' else 'below'} {upper:.16g}")
    for name, value in options.items():
        above = value >= lower if interval[0] == "[" else value > lower
        below = value <= upper if interval[-1] == "]" else value < upper
        if not (above and below):
            finite = [] if math.isfinite(value) else ["finite"]
            raise UserError(f"{prefix}{name} {value}: must be {' and '.join(limits + finite)}")
