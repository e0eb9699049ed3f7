# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that is measured: random weights with layers of InternVL3.5-30B-A3B's language model, fewer of them.

Every matrix of a decoder layer has its true size. Cut down are the number of layers, the vocabulary and the depth of
the vision tower, none of which the benchmark measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint_tools.published import PUBLISHED, Cut
from checkpoint_tools.writer import Wanted, every, write_checkpoint

MODEL = PUBLISHED["InternVL3_5-30B-A3B-HF"]
VOCAB_SIZE = 2048


def write_layers(directory: Path, layers: int, *, text: Mapping[str, Any] | None = None, wanted: Wanted = every) -> int:
    """Write the checkpoint; see `write_checkpoint`, whose errors it raises.

    Args:
        layers: decoder layers. A layer takes 1.25 GB.
        text: sizes of the language model that are others.
    Returns:
        Bytes of the weights.
    """
    cut = Cut(layers, vision_layers=1, vocab_size=VOCAB_SIZE, text=text or {})
    return sum(write_checkpoint(directory, MODEL, cut, wanted=wanted).values())
