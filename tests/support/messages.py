# SPDX-License-Identifier: Apache-2.0
"""Messages that models are given."""

from __future__ import annotations

from typing import Any


def question(text: str, *images: Any, mark: str = "{}") -> list[dict[str, Any]]:
    """A user's message with pictures in front of the text, or where a text with pictures has the mark."""
    pictures = [{"type": "image", "image": image} for image in images]
    texts = text.split(mark) if images and mark in text else [*[""] * len(images), text]
    parts = [{"type": "text", "text": one} for one in texts]
    content = [part for pair in zip(parts, pictures, strict=False) for part in pair if part.get("text") != ""]
    return [{"role": "user", "content": [*content, parts[-1]]}]
