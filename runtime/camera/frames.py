# SPDX-License-Identifier: Apache-2.0
"""Frames as cameras give them to pictures as requests take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest

RGB, BGR = "rgb", "bgr"
ORDERS = (RGB, BGR)
"""Orders of an array's colour channels; a fourth channel comes behind them in either."""


def check_order(order: str) -> str:
    """Return it unchanged; InvalidRequest unless it is one of ORDERS."""
    if order not in ORDERS:
        raise InvalidRequest(f"order {order!r:.60}: expected one of {', '.join(ORDERS)}")
    return order


def to_picture(frame: Any, order: str) -> Any:
    """A frame as a picture of a request.

    Args:
        frame: uint8 [height, width] or [height, width, 1], grey; [height, width, 3]; or [height, width, 4], whose last
            channel is left out, as that of BGRx holds nothing. What is no array, such as a PIL image or a path, is
            returned as it is.
        order: "rgb" or "bgr", of arrays of 3 or 4 channels.
    Returns:
        uint8 [height, width, 3] in RGB, a view of the frame where nothing has to move.
    Raises:
        InvalidRequest: an array of another type or shape.
    """
    if not isinstance(frame, np.ndarray):
        return frame
    channels = 1 if frame.ndim == 2 else frame.shape[2] if frame.ndim == 3 else 0
    if frame.dtype != np.uint8 or channels not in (1, 3, 4):
        raise InvalidRequest(
            f"frame {frame.dtype} {list(frame.shape)}: expected uint8 [height, width], [height, width, 3] or "
            f"[height, width, 4]{_advice(frame)}"
        )
    if channels == 1:
        height, width = frame.shape[:2]
        return np.broadcast_to(frame.reshape(height, width, 1), (height, width, 3))
    return frame[..., :3] if order == RGB else np.ascontiguousarray(frame[..., 2::-1])


def _advice(frame: npt.NDArray[Any]) -> str:
    """What to do with the mistakes that are made most."""
    if frame.dtype.kind == "f":
        return "; floats from 0 to 1 become that by (frame * 255).astype(numpy.uint8)"
    if frame.dtype == np.uint16:
        return "; values of 16 bits become that by (frame >> 8).astype(numpy.uint8)"
    if frame.ndim == 3 and frame.shape[0] in (1, 3, 4):
        return "; channels come last: frame.transpose(1, 2, 0)"
    return "; give one frame at a time" if frame.ndim == 4 else ""
