# SPDX-License-Identifier: Apache-2.0
"""Tables of a terminal: aligned columns, in plain characters."""

from __future__ import annotations

from collections.abc import Sequence


def align(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of cells as lines of columns two blanks apart.

    Args:
        left: so many first columns are aligned to the left, the others, numbers, to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def number(value: float) -> str:
    """At least three digits, and all of those before the point."""
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3}f}"
