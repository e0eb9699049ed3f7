# SPDX-License-Identifier: Apache-2.0
"""Regions of weight files: any view of a tensor is read as torch takes it, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmmoe.exporter.checkpoint.reader import Checkpoint, WeightRule
from fastmmoe.exporter.checkpoint.regions import Region, regions

View = Callable[[torch.Tensor], torch.Tensor]
VIEWS: dict[str, tuple[View, bool]] = {
    "whole": (lambda t: t, True),
    "one of the first axis": (lambda t: t[2:3], True),
    "rows": (lambda t: t[:, 1:3], False),
    "every other": (lambda t: t[..., 1::2], False),
    "transposed": (lambda t: t.transpose(1, 2), False),
    "turned": (lambda t: t.permute(2, 0, 1), False),
    "pairs apart": (lambda t: t.unflatten(-1, (4, 2)).transpose(-1, 1), False),
    "nothing": (lambda t: t[:0], True),
}
TENSOR = torch.arange(5 * 6 * 8.0).view(5, 6, 8)


@pytest.fixture
def region_of(tmp_path: Path) -> Callable[[View, torch.dtype], Region]:
    def make(view: View, dtype: torch.dtype) -> Region:
        (tmp_path / "config.json").write_text("{}")
        save_file({"a": torch.ones(3, dtype=dtype), "t": TENSOR.to(dtype)}, tmp_path / "model.safetensors")
        rule = WeightRule((("t", (5, 6, 8)),), (1,), (view,))
        (region,) = regions(Checkpoint(tmp_path), rule)
        return region

    return make


@pytest.mark.parametrize("most", [1, 30, 100, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", VIEWS)
def test_blocks_are_the_values_each_once(
    region_of: Callable[[View, torch.dtype], Region], name: str, dtype: torch.dtype, most: int
) -> None:
    view, is_contiguous = VIEWS[name]
    region, expected = region_of(view, dtype), view(TENSOR)
    assert (region.shape, region.is_contiguous) == (tuple(expected.shape), is_contiguous)
    found, times = torch.zeros(expected.shape), torch.zeros(expected.shape)
    buffer = torch.empty(TENSOR.numel() * dtype.itemsize, dtype=torch.uint8)
    for start, block in region.blocks(most):
        assert block.span <= max(most, dtype.itemsize)
        box = tuple(slice(i, i + n) for i, n in zip(start, block.shape, strict=True))
        found[box] = block.read(buffer).float()
        times[box] += 1
    assert torch.equal(found, expected) and bool((times == 1).all())


def test_sources_and_views_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": TENSOR[0], "b": TENSOR[1]}, tmp_path / "model.safetensors")
    rule = WeightRule((("b", (6, 8)), ("a", (6, 8))), (12, 8), (lambda t: t[3:], lambda t: t[:3]))
    found = [region.read(torch.empty(region.span, dtype=torch.uint8)) for region in regions(Checkpoint(tmp_path), rule)]
    expected = [TENSOR[1, 3:], TENSOR[1, :3], TENSOR[0, 3:], TENSOR[0, :3]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(rule.build([TENSOR[1], TENSOR[0]]), torch.cat(expected))
