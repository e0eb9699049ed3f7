# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint that is not a plain 16-bit or float32 model is told, by the names and dtypes of its tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmmoe.exporter.checkpoint.reader import Checkpoint, WeightRule, account
from fastmmoe.exporter.checkpoint.tensor_names import abbreviate, problem
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.cpu_seconds import bounded_seconds

LAYER = "language_model.model.layers.3.mlp."
WEIGHT = f"{LAYER}experts.0.gate_proj.weight"
PLAIN = "check that both belong to the same model and were downloaded completely"


def told(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """The refusal of a checkpoint with these tensors by a model that has `WEIGHT` alone."""
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel) as raised:
        account(Checkpoint(tmp_path), {"ours": WeightRule(((WEIGHT, (2, 2)),))}, ())
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((f"{LAYER}experts.gate_up_proj_blocks", f"{LAYER}experts.gate_up_proj_scales"), "MXFP4 weights: "),
        ((WEIGHT, f"{WEIGHT}_scale_inv"), "FP8 weights with block scales: "),
        ((WEIGHT, f"{WEIGHT}_scale"), "FP8 or FP4 weights: "),
        ((WEIGHT, f"{LAYER}experts.0.gate_proj.input_scale"), "FP8 or FP4 weights: "),
        (
            tuple(f"{LAYER}experts.0.gate_proj.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")),
            "GPTQ weights: ",
        ),
        (
            tuple(f"{LAYER}experts.0.gate_proj.{part}" for part in ("qweight", "qzeros", "scales")),
            "AWQ or GPTQ weights: ",
        ),
        ((f"{LAYER}experts.0.gate_proj.weight_packed",), "compressed-tensors weights: "),
        ((WEIGHT, f"{WEIGHT}.absmax", f"{WEIGHT}.quant_state.bitsandbytes__nf4"), "bitsandbytes weights: "),
        ((WEIGHT, f"{LAYER}experts.0.gate_proj.SCB"), "bitsandbytes weights: "),
        ((f"base_model.model.{WEIGHT}",), "saved from inside peft's wrapper"),
        ((f"language_model.base_model.model.{WEIGHT}",), "saved from inside peft's wrapper"),
        ((f"base_model.model.{LAYER}q_proj.lora_A.weight",), "a LoRA adapter that is not merged"),
        ((f"base_model.model.{LAYER}q_proj.base_layer.weight",), "saved with peft's layers inside"),
        ((f"module.{WEIGHT}",), "saved from a DistributedDataParallel wrapper"),
        ((f"_orig_mod.{WEIGHT}",), "saved from a compiled model"),
        (("language_model.model.norm.weight",), PLAIN),
        ((f"{LAYER}experts.1.gate_proj.weight",), PLAIN),
    ],
)
def test_advice_by_name(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    message = told(tmp_path, {name: torch.zeros(2, 2) for name in names} | {"another.weight": torch.zeros(1)})
    assert f"; {expected}" in message
    assert (PLAIN in message) == (expected == PLAIN)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float8_e4m3fn, "FP8 weights: "),
        (torch.float8_e5m2, "FP8 weights: "),
        (torch.uint8, "packed integer weights: "),
        (torch.int8, "integer weights: "),
        (torch.int32, "packed integer weights: "),
        (torch.float64, PLAIN),
    ],
)
def test_advice_by_dtype(tmp_path: Path, dtype: torch.dtype, expected: str) -> None:
    assert f"; {expected}" in told(tmp_path, {WEIGHT: torch.zeros(2, 2).to(dtype)})


def test_names_of_damaged_files_stay_one_short_line(tmp_path: Path) -> None:
    message = told(
        tmp_path, {"a\nb\x1b[31m": torch.zeros(1), "x" * 100_000: torch.zeros(1), f"a.{'9' * 5000}": torch.zeros(1)}
    )
    assert "'a\\nb\\x1b[31m'" in message and len(message) < 2000


def test_accounting_for_many_experts_is_quick(tmp_path: Path) -> None:
    """24 layers of 128 experts, all tensors missing and as many unexpected ones: seconds, not minutes."""
    names = [f"layers.{i}.mlp.experts.{e}.{part}_proj.weight" for i in range(24) for e in range(128) for part in "gud"]
    assert abbreviate(names) == [f"layers.{{0..23}}.mlp.experts.{{0..127}}.{part}_proj.weight" for part in "dgu"]
    assert problem("missing", {"": names}).startswith("9216 tensors missing: layers.{0..23}.mlp")
    (tmp_path / "config.json").write_text("{}")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"other.{name}": entry for name in names}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with (
        bounded_seconds(8),
        pytest.raises(UnsupportedModel, match=r"9216 tensors missing: .*9216 tensors unexpected: other\.layers"),
    ):
        account(Checkpoint(tmp_path), {name: WeightRule(((name, (1,)),)) for name in names}, ())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["a.b"], ["a.b"]),
        (["a.3.w"], ["a.3.w"]),
        (["a.0.w", "a.1.w", "a.2.w", "a.5.w", "a.11.w"], ["a.{0..2,5,11}.w"]),
        ([f"l.{i}.e.{e}.w" for i in range(1, 4) for e in range(8)], ["l.{1..3}.e.{0..7}.w"]),
        (["l.0.e.0", "l.0.e.1", "l.1.e.0"], ["l.0.e.{0..1}", "l.1.e.0"]),
        (["a.00", "a.0", "a.1"], ["a.00", "a.{0..1}"]),
    ],
)
def test_abbreviate_is_exact(names: list[str], expected: list[str]) -> None:
    assert abbreviate(names) == expected
