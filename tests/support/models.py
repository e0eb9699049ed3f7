# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as models on the meta device, which cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.pruning.settings import PolicyOptions

FLOAT32 = Precision(torch.float32, torch.float32)
FLOAT16 = Precision(torch.float16, torch.float16)
BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16)


def model_of(directory: Path, precision: Precision = FLOAT32, **options: Any) -> Model:
    """The model of a checkpoint with these pruning options."""
    return Model(Checkpoint(directory), PolicyOptions(**options), precision)
