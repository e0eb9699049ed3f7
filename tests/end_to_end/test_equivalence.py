# SPDX-License-Identifier: Apache-2.0
"""Ways to export and run that must agree: without the method, portable, twice, by other threads, in 16 bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.cli.main import main as run_main
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.onnx_graphs import without_metadata

Tensors = dict[str, Array]

SMALL = "dsvl2-small"
ROUNDED = {"fp16": 2e-2, "bf16": 1e-1}  # of logits, where experts are stored in 16 bits
STEPS = ("--max-new-tokens", "4")
ONNX_TYPE = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
ALIGNMENT = 64
# Float32 whatever the dtype: the router and the positions.
FLOAT32_PARTS = ("mlp.experts.router.", "mlp.experts.correction_bias", "inv_freq")


def assert_identical(found: Tensors, expected: Tensors, *names: str) -> None:
    for name in names or expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture
def assert_near(assert_close: Callable[..., None]) -> Callable[[Tensors, Tensors], None]:
    """Function (found, expected): the same survivors, lengths and tokens, and logits but for rounding."""

    def check(found: Tensors, expected: Tensors) -> None:
        assert found.keys() == expected.keys()
        layers = expected["cache_lengths"].shape[-1]
        for name, array in expected.items():
            if name in ("logits", "decode_logits"):
                assert_close("logits", found[name], array, layers)
            else:
                np.testing.assert_array_equal(found[name], array, err_msg=name)

    return check


def language_model(directory: Path) -> onnx.ModelProto:
    return onnx.load(directory / "language_model.onnx", load_external_data=False)


def expert_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [t for t in model.graph.initializer if t.name.endswith(("mlp.experts.gate_up", "mlp.experts.down"))]


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.engines
@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_full_retention_is_bit_identical_to_no_method(
    name: str,
    bundle: Callable[..., Path],
    case_tensors: Callable[[str, str], Tensors],
    run_tensors: Callable[..., Tensors],
) -> None:
    tensors = case_tensors(name, "single")
    plain = run_tensors(bundle(name, "--method", "none"), tensors, *STEPS)
    with_method = run_tensors(bundle(name), tensors, "--retention", "1.0", *STEPS)
    assert_identical(with_method, plain, "logits", "decode_logits", "decode_tokens", "cache_lengths")
    assert {"kept_index_stage1", "kept_index_stage2"} <= with_method.keys() - plain.keys()
    full_k = {"dsvl2-mla": "4", "internvl-gptoss": "3"}[name]
    explicit = run_tensors(bundle(name), tensors, "--retention", "1.0", "--visual-top-k", full_k, *STEPS)
    assert_identical(explicit, with_method)


@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss"])
def test_portable_is_native(
    name: str, vlm: Callable[..., VLM], case_tensors: Callable[[str, str], Tensors], assert_near: Callable[..., None]
) -> None:
    tensors = case_tensors(name, "batch2")
    # At 0.4 noise of 2e-6 in the pixels changes an expert of internvl-qwen3moe in either of them.
    for retention in (1.0, 0.45):
        native, portable = (
            vlm(name, portable=is_portable).run_tensors(tensors, retention=retention, max_new_tokens=2)
            for is_portable in (False, True)
        )
        assert_near(portable, native)
    assert len(native["row0_kept_index_stage2"]) < int(tensors["attention_mask"][0].sum())


def test_two_exports_are_byte_identical(bundle: Callable[..., Path], small_dir: Path, tmp_path: Path) -> None:
    # Another process has other hash seeds; --overwrite must leave nothing of the old bundle.
    out = tmp_path / "again"
    shutil.copytree(bundle("internvl-gptoss"), out)
    program = str(Path(sys.executable).with_name("fastmmoe-export"))
    command = [program, str(small_dir), str(out), "--prune-layers", "1,2", "--overwrite"]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"wrote {out}: 9 files" in result.stdout
    assert file_bytes(out) == file_bytes(bundle(SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_original_names_give_the_same_graphs(bundle: Callable[..., Path]) -> None:
    """But for what each says of the checkpoint that it is of."""
    for name in ("internvl-qwen3moe", "internvl-gptoss"):
        twin, original = file_bytes(bundle(name)), file_bytes(bundle(f"{name}-original"))
        assert twin.keys() == original.keys()
        graphs = {file for file in twin if file.endswith(".onnx")}
        assert {file for file in twin if twin[file] != original[file]} == {"manifest.json", *graphs}
        assert all(without_metadata(twin[file]) == without_metadata(original[file]) for file in graphs)


@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_thread_count_changes_nothing(
    name: str, vlm: Callable[..., VLM], case_tensors: Callable[[str, str], Tensors], assert_near: Callable[..., None]
) -> None:
    tensors = case_tensors(name, "batch2")
    expected = vlm(name, threads=1).run_tensors(tensors, retention=0.5, max_new_tokens=3)
    for threads in (2, 3):
        assert_near(vlm(name, threads=threads).run_tensors(tensors, retention=0.5, max_new_tokens=3), expected)


@pytest.mark.engines
@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-gptoss"])
def test_two_threads_answer_at_once(
    name: str, vlm: Callable[..., VLM], case_tensors: Callable[[str, str], Tensors]
) -> None:
    model, tensors = vlm(name), case_tensors(name, "batch2")
    retentions = (0.3, 0.7)
    alone = [model.run_tensors(tensors, retention=r, max_new_tokens=4) for r in retentions]
    together: list[list[Tensors]] = [[], []]
    barrier = threading.Barrier(2)

    def work(i: int) -> None:
        barrier.wait()
        for _ in range(3):
            together[i].append(model.run_tensors(tensors, retention=retentions[i], max_new_tokens=4))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(2):
        assert len(together[i]) == 3
        for found in together[i]:
            assert_identical(found, alone[i])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_16_bit_experts_on_cpu(
    dtype: str,
    bundle: Callable[..., Path],
    case_tensors: Callable[[str, str], Tensors],
    run_tensors: Callable[..., Tensors],
) -> None:
    # In rows: tiles are filled up, and their rows rounded.
    full, half = bundle(SMALL), bundle(SMALL, "--prune-layers", "1,2", "--dtype", dtype, "--layout", "logical")
    weights = expert_weights(language_model(half))
    assert len(weights) == 4
    saved = 0
    for tensor in weights:
        assert tensor.data_type == ONNX_TYPE[dtype]
        size = int(np.prod(tensor.dims)) * 2
        assert {e.key: e.value for e in tensor.external_data}["length"] == str(size)
        saved += size
    others = [t for t in language_model(half).graph.initializer if t.name.endswith(".weight")]
    assert {t.data_type for t in others} == {ONNX_TYPE["fp32"]}
    sizes = [(directory / "language_model.data").stat().st_size for directory in (full, half)]
    assert abs(sizes[0] - sizes[1] - saved) < ALIGNMENT * len(weights)
    tensors = case_tensors("dsvl2-mha", "batch2")
    expected = run_tensors(full, tensors, "--retention", "1.0", "--max-new-tokens", "1")["logits"]
    found = run_tensors(half, tensors, "--retention", "1.0", "--max-new-tokens", "1")["logits"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < ROUNDED[dtype]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_jetson_bundle(
    dtype: str, bundle: Callable[..., Path], fake_plugin: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    fake_plugin(architecture="aarch64")
    out = bundle(SMALL, "--prune-layers", "1,2", "--target", "jetson-orin", "--dtype", dtype)
    assert not list(out.glob("*.portable.onnx"))
    for path in sorted(out.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert not model.functions
        float32 = [t.name for t in model.graph.initializer if t.data_type == ONNX_TYPE["fp32"] and t.dims]
        weights = [n for n in float32 if n.endswith((".weight", ".bias", "gate_up", "down"))]
        assert not [n for n in weights if not any(part in n for part in FLOAT32_PARTS)], path.name
        floats = {v.type.tensor_type.elem_type for v in model.graph.input} & set(ONNX_TYPE.values())
        assert floats <= {ONNX_TYPE[dtype], ONNX_TYPE["fp32"]}
    model = language_model(out)
    types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]}
    assert types["inputs_embeds"] == types["past_key_values.0.key"] == types["present.2.value"] == ONNX_TYPE[dtype]
    assert types["logits"] == types["alpha"] == ONNX_TYPE["fp32"]
    # Their weights are inputs, whose values are in the file that the graph's other weights are in.
    experts = read_manifest(out).experts.inputs
    assert experts and {types[name] for name in experts} == {ONNX_TYPE[dtype]} and not expert_weights(model)
    line = refusal(run_main, ["run", str(out), "--prompt", "a"])
    assert "has no engines yet: fastmmoe build" in line and "on a machine of its target, jetson-agx-orin" in line
