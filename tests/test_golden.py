# SPDX-License-Identifier: Apache-2.0
"""The golden fixtures, and the trimmed copy: under its limit and equal to the full set where that is at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fastmmoe.runtime.types import Array

TRIMMED = Path(__file__).resolve().parent / "golden"
LIMIT_BYTES = 20_000_000
CHECKPOINTS = {
    "dsvl2-mha": "deepseek_vl_v2",
    "dsvl2-mla": "deepseek_vl_v2",
    "internvl-qwen3moe": "internvl",
    "internvl-gptoss": "internvl",
    "internvl-qwen3moe-original": "internvl_chat",
    "internvl-gptoss-original": "internvl_chat",
}


def tensors(path: Path) -> dict[str, Array]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def assert_same_tensors(actual: Path, expected: Path) -> None:
    left, right = tensors(actual), tensors(expected)
    assert sorted(left) == sorted(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        np.testing.assert_array_equal(tensor, right[name], err_msg=name)


def assert_same_arrays(actual: Path, expected: Path) -> None:
    with np.load(actual) as left, np.load(expected) as right:
        cut = left["last_row_only"].tolist() if "last_row_only" in left.files else []
        for name in set(left.files) - {"last_row_only"}:
            full = right[name][:, -1:] if name in cut else right[name]
            assert left[name].dtype == full.dtype, name
            np.testing.assert_array_equal(left[name], full, err_msg=f"{actual.name}:{name}")


def test_trimmed_copy_is_small() -> None:
    total = sum(path.stat().st_size for path in TRIMMED.rglob("*") if path.is_file())
    assert 10_000_000 < total <= LIMIT_BYTES


def test_trimmed_copy_equals_the_full_set(golden: Path, trimmed_golden: Path) -> None:
    if golden == trimmed_golden:
        pytest.skip("needs the full golden set: set FASTMMOE_GOLDEN")
    files = [path for path in sorted(trimmed_golden.rglob("*")) if path.is_file() and path.name != "README.md"]
    assert len(files) > 60
    for path in files:
        expected = golden / path.relative_to(trimmed_golden)
        if path.suffix == ".npz":
            assert_same_arrays(path, expected)
        elif path.suffix == ".safetensors":
            assert_same_tensors(path, expected)
        else:
            assert path.read_bytes() == expected.read_bytes(), path.name


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.endswith("-original")])
def test_renamed_tensors_are_those_of_the_original_checkpoint(trimmed_golden: Path, name: str) -> None:
    expected = json.loads((trimmed_golden / name / "tensors_on_disk.json").read_text())
    found = tensors(trimmed_golden / name / "model.safetensors")
    assert {key: list(tensor.shape) for key, tensor in found.items()} == expected


def test_array_of_the_full_set_skips_by_name(golden_array: partial[Array], trimmed_golden: Path) -> None:
    for missing in ("hidden_states", "logits"):
        with pytest.raises(pytest.skip.Exception, match=f"needs dsvl2-mha/outputs_single.npz:{missing} of the full"):
            golden_array.func(trimmed_golden, "dsvl2-mha/outputs_single.npz", missing)
    with pytest.raises(pytest.skip.Exception, match=r"needs baselines/sparsevlm_functions\.npz:attn of the full"):
        golden_array.func(trimmed_golden, "baselines/sparsevlm_functions.npz", "attn")


def test_last_logits_begin_the_recorded_tokens(
    golden_array: partial[Array], golden_last_logits: partial[Array]
) -> None:
    for name in ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss"):
        file = f"{name}/outputs_single.npz"
        decoded = golden_array(file, "decode_tokens")
        assert golden_last_logits(file).argmax(axis=1).tolist() == decoded[:1].tolist()
        assert golden_array(file, "decode_logits").argmax(axis=2)[:, 0].tolist() == decoded[1:].tolist()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_directories_are_complete(checkpoint: Callable[[str], Path], name: str) -> None:
    directory = checkpoint(name)
    assert json.loads((directory / "config.json").read_text())["model_type"] == CHECKPOINTS[name]
    assert len(tensors(directory / "model.safetensors")) > 100
    assert json.loads((directory / "tokenizer.json").read_text())["version"] == "1.0"
    assert (directory / "processor_config.json").is_file() == name.startswith("dsvl2-")


def test_own_checkpoint_may_be_changed(own_checkpoint: Callable[[str], Path], golden: Path, tmp_path: Path) -> None:
    directory = own_checkpoint("dsvl2-mla")
    # Checked before the write: it must not reach the golden data.
    assert directory.resolve().is_relative_to(tmp_path.resolve())
    assert not [path for path in directory.iterdir() if path.is_symlink()]
    expected = (golden / "dsvl2-mla" / "config.json").read_bytes()
    (directory / "config.json").write_text("{}")
    assert (golden / "dsvl2-mla" / "config.json").read_bytes() == expected
