# SPDX-License-Identifier: Apache-2.0
"""Types that every package uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy.typing as npt

# Help texts and refusals need no NumPy, whose import takes longer than they do.
Array: TypeAlias = "npt.NDArray[Any]"

Say: TypeAlias = Callable[[str], None]
"""Gets a line for the user, who may be a program."""
