# SPDX-License-Identifier: Apache-2.0
"""What golden files say of themselves; their contents: tests/end_to_end/test_polygraphy.py."""

from __future__ import annotations

import importlib
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fastmmoe.runtime.bundle.manifest import file_entry, load_manifest, write_manifest
from fastmmoe.runtime.bundle.storage import LinearInfo, LinearsInfo
from fastmmoe.runtime.interop import golden
from fastmmoe.runtime.interop.golden import DATA_LOADER, write_golden
from fastmmoe.runtime.request.options import RequestOptions
from tests.runtime.interop.test_recording import INFO, POLICY, WithArrays


@pytest.fixture
def without_polygraphy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that computes nothing, and files that hold the names alone."""
    monkeypatch.setattr(golden, "load_backend", lambda *_: WithArrays(INFO, POLICY))
    monkeypatch.setattr(golden, "_inputs_json", lambda calls, order: f"{len(calls)} {' '.join(order)}")
    monkeypatch.setattr(golden, "_outputs_json", lambda calls: " ".join(calls[0].outputs))


@pytest.mark.usefixtures("without_polygraphy")
def test_files_and_commands(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a b"
    found = write_golden(toy_bundle, out, RequestOptions(max_new_tokens=2), verify=False)
    assert {path.name for path in out.iterdir()} == {
        DATA_LOADER,
        *(f"{one.graph}.{kind}.json" for one in found for kind in ("inputs", "outputs")),
    }
    vision, _, language_model = found
    assert vision.inputs.read_text() == "1 pixel_values layout_index"
    assert language_model.outputs.read_text() == "logits next_ids kept_index.0 kept_index.1"
    assert [len(one.commands) for one in found] == [1, 1, 2]
    words = shlex.split(language_model.commands[0])
    assert words[:4] == ["polygraphy", "run", str(toy_bundle / "language_model.onnx"), "--fastmmoe"]
    assert words[words.index("--load-outputs") + 1] == str(language_model.outputs)
    portable = shlex.split(language_model.commands[1])
    assert portable[3] == "--onnxrt" and words[-3:] == ["1e-5", "--rtol", "1e-5"] and portable[-3] == "5e-5"


@pytest.mark.usefixtures("without_polygraphy")
def test_commands_of_packed_weights_can_pass(toy_bundle: Path, tmp_path: Path) -> None:
    manifest = load_manifest(toy_bundle)
    int8 = LinearInfo(weight_format="int8", group_size=128, zero_points=False)
    linears = LinearsInfo(dense=int8, head=int8, vision=int8)
    ops = manifest.ops | {"FmmLinear": 1, "FmmRotary": 1, "FmmVisionAttention": 1}
    tower = toy_bundle / "vision.portable.onnx"
    tower.write_text(tower.name)
    files = manifest.files | {tower.name: file_entry(tower)}
    write_manifest(toy_bundle, replace(manifest, linears=linears, ops=ops, files=files))
    found = write_golden(toy_bundle, tmp_path / "out", RequestOptions(max_new_tokens=2), verify=False)
    # Stock ONNX Runtime knows no FmmLinear, and the function bodies round nothing that ours rounds.
    runners = {one.graph: [shlex.split(command)[3] for command in one.commands] for one in found}
    assert runners == {"vision": ["--fastmmoe"], "embedding": ["--onnxrt"], "language_model": ["--fastmmoe"]}


@pytest.mark.usefixtures("without_polygraphy")
def test_the_data_loader_yields_inputs(toy_bundle: Path, tmp_path: Path) -> None:
    write_golden(toy_bundle, tmp_path / "out", RequestOptions(), verify=False)
    loader: dict[str, Any] = runpy.run_path(str(tmp_path / "out" / DATA_LOADER))
    assert loader["load_data"] is loader["language_model"]
    assert set(next(loader["vision"]())) == {"pixel_values", "layout_index"}
    assert "logits" not in next(loader["load_data"]()) and "alpha" in next(loader["load_data"]())


@pytest.mark.usefixtures("without_polygraphy")
def test_polygraphy_does_not_import_torch(monkeypatch: pytest.MonkeyPatch, toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(golden, "_outputs_json", lambda _: importlib.import_module("torch").__name__)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        write_golden(toy_bundle, tmp_path / "out", RequestOptions(), verify=False)
    assert importlib.import_module("torch").__file__ == str(tmp_path / "torch.py")


def test_the_place_of_a_file_is_no_directory(toy_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(FileExistsError):
        write_golden(toy_bundle, place, RequestOptions(), verify=False)


def test_recordings_are_what_is_written(monkeypatch: pytest.MonkeyPatch, toy_bundle: Path, tmp_path: Path) -> None:
    """With the package, if it is there: two calls, whose names are those of the graph."""
    json = pytest.importorskip("polygraphy.json", reason="needs polygraphy: pip install -e '.[dev]'")
    monkeypatch.setattr(golden, "load_backend", lambda *_: WithArrays(INFO, POLICY))
    (_, _, found) = write_golden(toy_bundle, tmp_path, RequestOptions(max_new_tokens=2), verify=False)
    inputs = json.load_json(str(found.inputs))
    assert [call["position_ids"].shape[0] for call in inputs][1] == 1
