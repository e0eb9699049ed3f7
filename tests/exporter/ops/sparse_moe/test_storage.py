# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.ops.sparse_moe.storage import Storage, part_of

STORAGES = [Storage(None, is_tiled=True)] + [
    Storage(Packing(weight_format, 32, zeros), is_tiled)  # type: ignore[arg-type]
    for weight_format in ("int8", "int4")
    for zeros in (False, True)
    for is_tiled in (False, True)
]


@pytest.mark.parametrize("is_gate_up", [True, False])
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_parts_have_the_shapes_that_are_said(storage: Storage, is_gate_up: bool) -> None:
    rows, columns = 40, 72
    expert = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    stored = storage.store(
        expert if storage.packing is not None else expert.astype(np.float16).view(np.int16), is_gate_up=is_gate_up
    )
    for part in storage.parts:
        assert storage.shape(part, 3, rows, columns, is_gate_up=is_gate_up) == (3, *part_of(stored, part).shape)


def test_attributes() -> None:
    assert Storage(None, is_tiled=True).attributes(40) == {"weight_layout": "tiles", "expert_size": 40}
    found = Storage(Packing("int8", 64, True), is_tiled=False).attributes(40)
    assert (found["weight_layout"], found["expert_size"], found["zero_points"]) == ("logical", 0, 1)
