# SPDX-License-Identifier: Apache-2.0
"""Weights that are not finite, or not in the exported dtype, are refused by name before anything is traced."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.check import weights as weight_check
from fastmmoe.exporter.check.weights import check_weights
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import UnsupportedModel

NAN, INF = float("nan"), float("inf")
FLOAT32 = Precision(torch.float32, torch.float32)
FLOAT16 = Precision(torch.float16, torch.float16)
BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16)
EMBEDDING = "language.model.embed_tokens.weight"
EXPERT = "language.model.layers.1.mlp.experts.3.down_proj.weight"
ROUTER = "language.model.layers.1.mlp.gate.weight"
# The greatest float32 below 2^128 is nearer to 2^128 than to the greatest bfloat16.
ROUNDS_UP = torch.finfo(torch.float32).max


def packed(weight_format: str, *, zero_points: bool = False) -> Precision:
    packing = Packing("int8" if weight_format == "int8" else "int4", 32, zero_points)
    return Precision(torch.float16, torch.float16, packing=packing)


@pytest.fixture(scope="module")
def check(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Function (tensor name, value, precision) -> reported lines, of a checkpoint with this value in the tensor's
    second-last row, third column."""
    directory = tmp_path_factory.mktemp("weights")
    shutil.copyfile(checkpoint("dsvl2-mha") / "config.json", directory / "config.json")
    original = load_file(checkpoint("dsvl2-mha") / "model.safetensors")

    @functools.cache
    def model(precision: Precision) -> Model:
        return Model(Checkpoint(directory), PolicyOptions(prune_layers=(1, 2, 3)), precision)

    def run(name: str, value: float, precision: Precision) -> list[str]:
        tensors = original | {name: original[name].clone()}
        tensors[name][..., -2, 2] = value
        save_file(tensors, directory / "model.safetensors")
        model(precision).checkpoint = Checkpoint(directory)
        lines: list[str] = []
        check_weights(model(precision), lines.append)
        return lines

    return run


@pytest.mark.parametrize("precision", [FLOAT32, FLOAT16, packed("int8")])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", [EMBEDDING, EXPERT, "vision.pos_embed", "language.lm_head.weight"])
def test_values_that_are_not_finite(
    check: Callable[..., list[str]], name: str, value: float, precision: Precision
) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        check(name, value, precision)
    message = str(raised.value)
    assert f"tensor '{name}' [" in message and f"has {value:g} at [" in message and ", 2]: expected finite" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [EMBEDDING, EXPERT, "vision.blocks.0.mlp.fc1.weight"])
@pytest.mark.parametrize(
    ("value", "precision", "refusal"),
    [
        (-65519.0, FLOAT16, None),  # rounds to -65504
        (-65520.0, FLOAT16, "beyond what float16 holds (65504)"),
        (1e38, FLOAT16, "beyond what float16 holds (65504)"),
        (1e38, BFLOAT16, None),
        (ROUNDS_UP, BFLOAT16, "beyond what bfloat16 holds (3.38953e+38)"),
        (ROUNDS_UP, FLOAT32, None),
    ],
)
def test_values_beyond_the_exported_dtype(
    check: Callable[..., list[str]], name: str, value: float, precision: Precision, refusal: str | None
) -> None:
    if refusal is None:
        assert check(name, value, precision) == []
        return
    with pytest.raises(UnsupportedModel) as raised:
        check(name, value, precision)
    assert f"tensor '{name}' [" in str(raised.value) and f"has {value:g} at [" in str(raised.value)
    assert refusal in str(raised.value)


def test_routers_are_float32_in_every_export(check: Callable[..., list[str]]) -> None:
    assert check(ROUTER, 1e30, FLOAT16) == []


@pytest.mark.parametrize(
    ("value", "precision", "is_refused"),
    [
        (65504.0 * 127, packed("int8"), False),
        (65520.0 * 127, packed("int8"), True),
        (-65504.0 * 7, packed("int4"), False),
        (-65520.0 * 7, packed("int4"), True),
        (65504.0 * 15, packed("int4", zero_points=True), False),
        (65520.0 * 15, packed("int4", zero_points=True), True),
    ],
)
def test_scales_of_packed_experts(
    check: Callable[..., list[str]], value: float, precision: Precision, is_refused: bool
) -> None:
    """Packed experts may hold what float16 does not, as far as their scales go."""
    if not is_refused:
        assert check(EXPERT, value, precision) == []
        return
    with pytest.raises(
        UnsupportedModel, match=r"expert 3 of .* needs a scale beyond what float16 holds .*--experts float"
    ):
        check(EXPERT, value, precision)


def test_several_values_in_several_chunks(
    check: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count, value and place are those of the whole tensor, whatever the chunks are."""
    monkeypatch.setattr(weight_check, "_CHUNK", 100)
    tensor = torch.zeros(7, 11, 13)
    for place in ((2, 3, 4), (2, 3, 5), (6, 10, 12)):
        tensor[place] = INF
    (tmp_path / "config.json").write_text("{}")
    save_file({"other": torch.zeros(3), "x": tensor}, tmp_path / "model.safetensors")
    found = weight_check._describe(Checkpoint(tmp_path), "x", lambda chunk: chunk.isinf())
    assert found == "3 values like inf at [2, 3, 4]"
    with pytest.raises(UnsupportedModel, match=r"has nan at \["):
        check(EMBEDDING, NAN, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_stored_dtype(own_checkpoint: Callable[[str], Path], dtype: torch.dtype) -> None:
    directory = own_checkpoint("dsvl2-mha")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(directory / "model.safetensors").items()}
    tensors[EMBEDDING][5, 1] = NAN
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"embed_tokens.weight' \[\d+, \d+\] has nan at \[5, 1\]"):
        check_weights(Model(Checkpoint(directory), PolicyOptions(prune_layers=(1, 2, 3)), BFLOAT16), print)


def test_a_large_checkpoint_is_said_to_be_read(
    check: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_check, "_QUIET_BYTES", 0)
    monkeypatch.setattr(weight_check, "_PROGRESS_SECONDS", 0.0)
    lines = check(EMBEDDING, 0.0, FLOAT32)
    assert "of weights once: every value must be finite" in lines[0] and len(lines) > 100
    done, total = lines[-1].removeprefix("read ").removesuffix(" GB").split(" of ")
    assert done == total


def test_a_file_that_is_cut_off_meanwhile_is_refused_by_name(own_checkpoint: Callable[[str], Path]) -> None:
    """No page of a mapping is touched, where a file that ends before would end the process."""
    path = own_checkpoint("dsvl2-mha") / "model.safetensors"
    model = Model(Checkpoint(path.parent), PolicyOptions(prune_layers=(1, 2, 3)), FLOAT32)
    chunks = weight_check._chunks(model.checkpoint, EMBEDDING)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors cannot be read any more \(100 bytes, "):
        next(chunks)
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors cannot be read any more \(100 bytes, "):
        check_weights(model, print)
