# SPDX-License-Identifier: Apache-2.0
"""The room that an export needs, counted before the work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmmoe.exporter.config import DEMO, checkpoint_directory
from fastmmoe.exporter.disk_space import check_space, weights_bytes
from fastmmoe.exporter.model import EXPERT_WEIGHTS, FLOAT32_PARTS, Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.runtime.bundle.manifest import GRAPHS
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.models import FLOAT16, FLOAT32, model_of


def counts(model: Model) -> tuple[int, int, int]:
    """Parameters of the experts, those that are float32 in every model, and the others."""
    named = [
        (f"{graph}.{name}", p.numel())
        for graph, module in model.graphs.items()
        for name, p in module.named_parameters()
    ]
    experts = sum(n for name, n in named if name.endswith(EXPERT_WEIGHTS))
    routers = sum(n for name, n in named if any(part in name for part in FLOAT32_PARTS))
    return experts, routers, sum(n for _, n in named) - experts - routers


@pytest.mark.parametrize(
    ("precision", "of_expert", "of_other"),
    [
        (FLOAT32, 4.0, 4),
        (FLOAT16, 2.0, 2),
        (Precision(torch.bfloat16, torch.float32), 2.0, 4),
        (replace(FLOAT16, packing=Packing("int8", 32, False)), 1.0, 2),
        (replace(FLOAT16, packing=Packing("int4", 32, True)), 0.5, 2),
        # The twin holds what the integers stand for.
        (replace(FLOAT16, packing=Packing("int4", 32, True)).float32_twin(), 4.0, 4),
    ],
)
def test_bytes_of_the_weights(
    checkpoint: Callable[[str], Path], precision: Precision, of_expert: float, of_other: int
) -> None:
    model = model_of(checkpoint("dsvl2-mha"), precision)
    found = weights_bytes(model)
    assert tuple(found) == GRAPHS and all(found.values())
    experts, routers, others = counts(model)
    assert experts > 10_000 and routers > 1_000
    assert sum(found.values()) == of_expert * experts + 4 * routers + of_other * others


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Function (bytes) -> the disk has so many left, for the rest of the test."""
    disk = shutil.disk_usage(tmp_path)

    def set_free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=count))

    return set_free


def test_exactly_enough_is_enough(
    checkpoint: Callable[[str], Path], free: Callable[[int], None], tmp_path: Path
) -> None:
    model = model_of(checkpoint("dsvl2-mha"))
    needed = sum(weights_bytes(model).values())
    free(needed)
    check_space(tmp_path / "out", model)
    free(needed - 1)
    with pytest.raises(InvalidRequest) as refusal:
        check_space(tmp_path / "out", model)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'out'}: the export takes at least ") and "for the check" not in message
    assert message.endswith(" left: free some, or give another output directory")


@pytest.mark.parametrize(
    ("packing", "checking"),
    [
        (None, ""),
        # A layer of 16 experts, three matrices of 128 x 32 each: 196,608 weights.
        (Packing("int4", 32, False), ", 0.4 MB of it for the check"),
    ],
)
def test_room_for_the_check(
    packing: Packing | None, checking: str, free: Callable[[int], None], tmp_path: Path
) -> None:
    """What integers of one layer stand for; floats of 16 bits are read where they are."""
    model = model_of(checkpoint_directory(DEMO), replace(FLOAT16, packing=packing))
    free(1_000_000)
    with pytest.raises(InvalidRequest) as refusal:
        check_space(tmp_path / "out", model)
    assert f"{checking}, and its disk has 1.0 MB" in str(refusal.value)
    free(20_000_000)
    check_space(tmp_path / "out", model)
