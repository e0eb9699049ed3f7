# SPDX-License-Identifier: Apache-2.0
"""What a model repository says, and which ones are refused; Triton's own reader: tests/end_to_end/test_triton.py."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from fastmmoe.runtime.bundle.manifest import load_manifest, write_manifest
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.interop import triton_repository
from fastmmoe.runtime.interop.triton_repository import DEFAULT_BATCH, RepositoryOptions, write_repository


def test_files_and_the_line_that_serves_them(toy_bundle: Path, tmp_path: Path) -> None:
    found = write_repository(toy_bundle, tmp_path / "out", RepositoryOptions(name="robot", instances=2, max_batch=3))
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        "models/robot/config.pbtxt",
        "models/robot/1/model.py",
        "kubernetes.yaml",
        "kserve.yaml",
    }
    config = found.config.read_text()
    for line in ('name: "robot"', "max_batch_size: 3", "decoupled: true", "count: 2 kind: KIND_CPU"):
        assert line in config
    assert f"{{ string_value: {json.dumps(str(toy_bundle))} }}" in config
    words = shlex.split(found.launch)
    assert words[:2] == ["docker", "run"] and "--gpus" not in words
    assert f"{toy_bundle}:{toy_bundle}:ro" in words and f"{found.models}:/models:ro" in words
    assert "fastmmoe[cpu]" in words[-1] and words[-1].endswith("tritonserver --model-repository=/models")
    compile((found.models / "robot" / "1" / "model.py").read_text(), "model.py", "exec")


def test_a_bundle_of_engines_runs_on_gpus(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(toy_bundle)
    changed = msgspec.structs.replace(manifest, target="l4")
    monkeypatch.setattr(triton_repository, "open_bundle", lambda *_, **__: type("Opened", (), {"manifest": changed}))
    found = write_repository(toy_bundle, tmp_path / "out", RepositoryOptions(bundle_path="/bundle"))
    assert (
        "kind: KIND_GPU" in found.config.read_text() and f"max_batch_size: {DEFAULT_BATCH}" in found.config.read_text()
    )
    assert "--gpus" in shlex.split(found.launch) and f"{toy_bundle}:/bundle:ro" in found.launch
    for file in (found.kubernetes, found.kserve):
        assert '"nvidia.com/gpu": 1' in file.read_text() and 'mountPath: "/bundle"' in file.read_text()


def test_no_more_sequences_than_the_engines_take(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = type("Limits", (), {"max_batch": 2})
    monkeypatch.setattr(triton_repository, "read_engines", lambda _: type("Engines", (), {"limits": limits}))
    batch = triton_repository._max_batch
    assert batch(toy_bundle, RepositoryOptions(), True) == 2
    assert batch(toy_bundle, RepositoryOptions(max_batch=1), True) == 1
    assert batch(toy_bundle, RepositoryOptions(), False) == DEFAULT_BATCH
    with pytest.raises(InvalidRequest, match=r"^--max-batch 3: the engines of .* take 2 sequences at once: build them"):
        batch(toy_bundle, RepositoryOptions(max_batch=3), True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RepositoryOptions(name="A_b"), "--name A_b: expected up to 63 letters"),
        (RepositoryOptions(name="a/../b"), "--name a/../b: expected"),
        (RepositoryOptions(instances=0), "--instances 0: expected at least 1"),
        (RepositoryOptions(max_batch=-1), "--max-batch -1: expected at least 1"),
        (RepositoryOptions(replicas=0), "--replicas 0: expected at least 1"),
        (RepositoryOptions(queue_delay_us=-1), "--queue-delay-us -1: expected 0 or more"),
        (RepositoryOptions(bundle_path="b"), "--bundle-path b: expected an absolute path"),
    ],
)
def test_options_that_are_refused(options: RepositoryOptions, message: str, toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as error:
        write_repository(toy_bundle, tmp_path / "out", options)
    assert str(error.value).startswith(message) and not (tmp_path / "out").exists()


def test_a_bundle_without_tokenizer(toy_bundle: Path, tmp_path: Path) -> None:
    manifest = load_manifest(toy_bundle)
    files = {name: entry for name, entry in manifest.files.items() if name != "tokenizer.json"}
    write_manifest(toy_bundle, msgspec.structs.replace(manifest, files=files))
    (toy_bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleMismatch, match="tokenizer"):
        write_repository(toy_bundle, tmp_path / "out")


def test_what_a_name_holds_cannot_end_a_line_or_a_string(toy_bundle: Path, tmp_path: Path) -> None:
    manifest = load_manifest(toy_bundle)
    write_manifest(toy_bundle, msgspec.structs.replace(manifest, model="a\nbackend: x"))
    place = '/b"} \\ c'
    found = write_repository(toy_bundle, tmp_path / "out", RepositoryOptions(bundle_path=place))
    config = found.config.read_text()
    assert config.startswith("# fastmmoe: a backend: x, by fastmmoe") and r'"/b\"} \\ c"' in config
