# SPDX-License-Identifier: Apache-2.0
"""The configuration of one export; the command line takes its defaults from here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from fastmmoe.exporter.pruning.settings import PolicyOptions

DEMO = "demo"
GROUP_SIZE = 128
"""Unless something else is asked for."""

Weights: TypeAlias = Literal["fp32", "bf16", "int8", "int4"]
ExpertFormat: TypeAlias = Literal["float", "int8", "int4", "fp8"]
DenseFormat: TypeAlias = Literal["float", "bf16", "int8", "int4"]
VisionFormat: TypeAlias = Literal["float", "bf16", "int8"]
_DEMO_DIRECTORY = Path(__file__).parent / "demo_model"


def checkpoint_directory(model: str) -> Path:
    """Where the checkpoint is that a command names: a directory, or "demo" for the built-in one."""
    return _DEMO_DIRECTORY if model == DEMO else Path(model)


@dataclass(frozen=True)
class ExportConfig:
    """Everything an export depends on.

    Attributes:
        model: checkpoint directory, or "demo" for the built-in checkpoint.
        out: None = ./MODEL-TARGET.
        target: a name that `find_target` knows.
        dtype: key of `DTYPES`; None = the target's default.
        kv_cache_dtype: of the key-value caches, the same; None = that of the activations.
        atol: greatest difference from torch; None = that of the check.
        overwrite: replace an existing bundle.
        resume: what an interrupted export leaves stays, and the next one goes on with it.
        weights: a mix of the formats below, of those that are not given themselves; None = none of it.
        experts: weight format of the routed experts: "float" (as dtype says), "int8", "int4" or "fp8".
        dense: that of the language model's linear layers; with "int4" the head is of 8 bits.
        vision: that of the vision tower's linear layers.
        layout: order of the experts' weights, "logical" or "tiles"; None = tiles where target and format have them.
        chat_template: the built-in one of the model's family, or the one that the checkpoint ships.
        group_size, zero_points: how packed experts and linear layers of 4 bits are stored, as in the contracts.
        memory: of the target's device, "64GB"; None = the greatest there is.
    """

    model: str = DEMO
    out: Path | None = None
    target: str = "cpu"
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    atol: float | None = None
    overwrite: bool = False
    resume: bool = False
    weights: Weights | None = None
    experts: ExpertFormat | None = None
    dense: DenseFormat | None = None
    vision: VisionFormat | None = None
    group_size: int | None = None
    zero_points: bool = False
    layout: Literal["logical", "tiles"] | None = None
    chat_template: Literal["builtin", "checkpoint"] = "builtin"
    memory: str | None = None
    policy: PolicyOptions = field(default_factory=PolicyOptions)
