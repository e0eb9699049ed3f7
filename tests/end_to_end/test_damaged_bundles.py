# SPDX-License-Identifier: Apache-2.0
"""Bundles after seeded damage, and bundles of parts that do not fit each other, up to the load of their graphs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from fastmmoe.runtime.bundle.manifest import Manifest, file_entry, read_manifest, write_manifest
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.errors import BundleMismatch, NotFinite
from fastmmoe.runtime.vlm import VLM
from tests.support.documented import undocumented

Refusal = Callable[..., str]
MUTATIONS = 150


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes after a flipped bit, a cut, zeros, more bytes, or two pieces that have changed places."""
    changed = bytearray(data)
    at, size = (int(rng.integers(0, len(data))) for _ in range(2))
    kind = rng.integers(0, 5)
    if kind == 0:
        changed[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at : at + size] = bytes(len(changed[at : at + size]))
    elif kind == 3:
        changed[at:at] = rng.bytes(1 + size % 64)
    else:
        changed = changed[at:] + changed[:at]
    return bytes(changed)


def says_the_same(a: bytes, b: bytes) -> bool:
    """Whether two manifests differ in blanks alone."""
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def test_seeded_damage_is_refused(own_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in own_bundle.iterdir())
    open_bundle(own_bundle)
    for number in range(MUTATIONS):
        path = own_bundle / names[number % len(names)]
        whole = path.read_bytes()
        damaged = mutate(whole, rng)
        path.write_bytes(damaged)
        try:
            open_bundle(own_bundle)
        except BundleMismatch as error:
            assert "\n" not in str(error) and path.name in str(error), str(error)
        else:
            assert damaged == whole or (path.name == "manifest.json" and says_the_same(damaged, whole)), number
        path.write_bytes(whole)
    open_bundle(own_bundle)


def seal(directory: Path, **changes: Any) -> None:
    """Make the manifest say that the files are as they should be, with changes of its own."""
    document = json.loads((directory / "manifest.json").read_text())
    for key, value in changes.items():
        document[key] = document[key] | value if isinstance(value, dict) else value
    document["files"] = {name: msgspec.to_builtins(file_entry(directory / name)) for name in document["files"]}
    write_manifest(directory, msgspec.convert(document, Manifest))


def edit_graph(path: Path, edit: Callable[[Any], object]) -> None:
    model = onnx.load(str(path), load_external_data=False)
    edit(model.graph)
    onnx.save(model, str(path))


def set_width(graph: Any, width: int) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = width


def rename_weights(graph: Any) -> None:
    for entry in graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "vision.data"


def change_scale(graph: Any) -> None:
    """Of the last layer's attention."""
    node = [node for node in graph.node if node.op_type == "FmmAttention"][-1]
    next(a for a in node.attribute if a.name == "scale").f = 1.0


MISFITS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "hidden size": (lambda d: None, {"language_model": {"hidden_size": 2048}}, "vision.onnx: output image_features is"),
    "operators": (lambda d: None, {"ops": {"FmmTokenPrune": 2}}, "the bundle uses version 2 of FmmTokenPrune"),
    "experts of visual tokens": (
        lambda d: None,
        {"policy": {"prune_layers": {"fastmmoe": [1]}, "stage_exponents": [1.0]}},
        "language_model.onnx: has an input keep_offsets.1, which is not expected",
    ),
    "attention of another scale": (
        lambda d: edit_graph(d / "language_model.onnx", change_scale),
        {},
        "language_model.onnx: layers.2.self_attn/FmmAttention has scale 1.0, expected 0.",
    ),
    "fixed length": (
        lambda d: edit_graph(d / "embedding.onnx", lambda g: set_width(g, 7)),
        {},
        "embedding.onnx: input input_ids is int32 [7], expected int32 [T]",
    ),
    "weights of another graph": (
        lambda d: edit_graph(d / "embedding.onnx", rename_weights),
        {},
        "embedding.onnx: has weights in 'vision.data', expected embedding.data",
    ),
    "another graph": (
        lambda d: shutil.copyfile(d / "embedding.onnx", d / "vision.onnx"),
        {},
        "vision.onnx: has weights in 'embedding.data', expected vision.data",
    ),
}


@pytest.mark.parametrize("flags", [(), ("--no-verify",)])
@pytest.mark.parametrize("misfit", MISFITS)
def test_parts_that_do_not_fit_are_refused(
    misfit: str, flags: tuple[str, ...], own_bundle: Path, refusal: Refusal
) -> None:
    spoil, changes, words = MISFITS[misfit]
    spoil(own_bundle)
    seal(own_bundle, **changes)
    assert words in refusal(main, ["run", str(own_bundle), "--prompt", "a", *flags])


def test_no_verify_runs_what_verification_refuses(own_bundle: Path, refusal: Refusal) -> None:
    path = own_bundle / "embedding.data"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert "embedding.data: damaged: SHA-256" in refusal(main, ["run", str(own_bundle), "--prompt", "a"])
    assert main(["run", str(own_bundle), "--prompt", "a", "--no-verify", "--max-new-tokens", "1"]) == 0


def test_logits_that_are_no_numbers(own_bundle: Path, refusal: Refusal) -> None:
    path = own_bundle / "language_model.data"
    path.write_bytes(b"\xff" * path.stat().st_size)
    seal(own_bundle)
    line = refusal(main, ["run", str(own_bundle), "--prompt", "a"])
    assert "the logits hold NaN or infinity: its inputs are finite, so the language model computed them" in line
    with pytest.raises(NotFinite):
        VLM(own_bundle).run_tensors({"input_ids": np.array([[3, 4]])}, max_new_tokens=1)


def test_weights_that_change_under_a_loaded_bundle(own_bundle: Path) -> None:
    model = VLM(own_bundle)
    tensors = {"input_ids": np.array([[3, 4, 5]])}
    model.run_tensors(tensors, max_new_tokens=1)
    with (own_bundle / "language_model.data").open("r+b") as file:
        file.write(bytes(1 << 16))
    with pytest.raises(BundleMismatch, match=r"language_model\.data: has been written to or renamed since the bundle"):
        model.run_tensors(tensors, max_new_tokens=1)


def test_verify_and_inspect(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(own_bundle)]) == 0
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == ["[✓] "] * 2
    assert main(["verify", str(own_bundle), "--json"]) == 0
    output = capsys.readouterr()
    verified = json.loads(output.out)
    assert output.err.count("[✓] ") == len(verified["checks"]) == 2 and undocumented("verify", verified) == []
    assert verified["files"] == len(list(own_bundle.iterdir())) - 1
    assert main(["verify", str(own_bundle), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["inspect", str(own_bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    manifest = read_manifest(own_bundle)
    info = manifest.language_model
    # Gate and up, then down.
    experts = len(info.moe_layers) * info.num_experts * 3 * info.hidden_size * info.moe_intermediate_size
    assert found["parameters"]["routed experts"] == experts
    assert found["parameters"]["embedding"] == info.vocab_size * info.hidden_size
    assert found["damage"] == [] and found["engines"] is None
    assert found["files"].keys() == {path.name for path in own_bundle.iterdir()} - {"manifest.json"}
    entry = found["files"]["vision.data"]
    assert entry["sha256"] == hashlib.sha256((own_bundle / "vision.data").read_bytes()).hexdigest()
    assert main(["inspect", str(own_bundle)]) == 0
    assert f"target        cpu, dtype {manifest.dtype}" in capsys.readouterr().out
