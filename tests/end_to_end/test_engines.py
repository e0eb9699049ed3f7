# SPDX-License-Identifier: Apache-2.0
"""Engine targets from checkpoint to engines: what is exported, built and recorded, and what is refused.

Engines are built by the real TensorRT-RTX, which needs no GPU. Nothing here runs an engine.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fastmmoe import __version__
from fastmmoe.exporter.cli import main as export_main
from fastmmoe.exporter.graph import templates
from fastmmoe.plugins import tensorrt_library_path
from fastmmoe.runtime.backends.tensorrt import build as engines_module
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions, build_engines
from fastmmoe.runtime.bundle.manifest import (
    Engines,
    FileEntry,
    Limits,
    Manifest,
    PluginInfo,
    file_entry,
    read_manifest,
    write_manifest,
)
from fastmmoe.runtime.cli.main import main as run_main
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.machines.gpu import Gpu
from fastmmoe.runtime.machines.targets import RTX, TARGETS

Refusal = Callable[..., str]

SMALL = "dsvl2-small"
JETSON_FLAGS = ("--prune-layers", "1,2", "--target", "jetson-orin", "--dtype", "fp16")
RTX_FLAGS = ("--prune-layers", "1,2", "--target", "rtx")
FEW = BuildOptions(max_tokens=300, max_visual=210, max_cache=400, max_tiles=1)
ENGINE_FILES = ["vision.engine", "embedding.engine", "language_model.engine"]
KILL_SECONDS = 120


@pytest.fixture(scope="session")
def rtx_bundle(bundle: Callable[..., Path]) -> Path:
    """A bundle with engines, made once. Do not change it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(f"needs tensorrt_rtx: {RTX.install}")
    library = tensorrt_library_path("x86_64")
    if not library.is_file():
        pytest.skip(f"needs {library}: make plugins")
    return bundle(SMALL, *RTX_FLAGS)


@pytest.fixture
def own_rtx_bundle(rtx_bundle: Path, tmp_path: Path) -> Path:
    """A copy that this test may change."""
    return Path(shutil.copytree(rtx_bundle, tmp_path / "bundle"))


@pytest.fixture
def jetson_bundle(bundle: Callable[..., Path], fake_plugin: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle for jetson-orin, with a file in the plugin's place, that this test may change."""
    fake_plugin(architecture="aarch64")
    return Path(shutil.copytree(bundle(SMALL, *JETSON_FLAGS), tmp_path / "bundle"))


def read_engines(directory: Path) -> Engines:
    return msgspec.json.decode((directory / "engines.json").read_bytes(), type=Engines)


def engine_entries(directory: Path) -> dict[str, FileEntry]:
    return {path.name: file_entry(path) for path in sorted(directory.glob("*.engine"))}


def edit_manifest(directory: Path, **changes: Any) -> None:
    document = json.loads((directory / "manifest.json").read_text()) | changes
    write_manifest(directory, msgspec.convert(document, Manifest))


def test_jetson_bundle_is_complete(jetson_bundle: Path) -> None:
    manifest = read_manifest(jetson_bundle)
    assert manifest.plugin == PluginInfo(version=__version__, architecture="aarch64")
    assert manifest.files["libfastmmoe_trt.so"] == file_entry(jetson_bundle / "libfastmmoe_trt.so")
    assert {path.name for path in jetson_bundle.iterdir()} == {*manifest.files, "manifest.json"}


def test_cpu_bundle_has_no_plugin(bundle: Callable[..., Path]) -> None:
    assert read_manifest(bundle(SMALL)).plugin is None
    assert not list(bundle(SMALL).glob("libfastmmoe*"))


def test_export_builds_rtx_engines(rtx_bundle: Path) -> None:
    manifest, engines = read_manifest(rtx_bundle), read_engines(rtx_bundle)
    assert list(engines.files) == ENGINE_FILES
    assert engines.files == engine_entries(rtx_bundle)
    assert all(entry.bytes > 50_000 for entry in engines.files.values())
    assert engines.module == "tensorrt_rtx" and engines.tensorrt_version.startswith("1.7.1.")
    assert engines.compute_capabilities == (80, 86, 89, 120) and engines.device is None
    assert engines.limits == Limits(max_tokens=2617, max_visual=2105, max_cache=3129, max_tiles=10, max_batch=1)
    assert engines.bundle_sha256 == file_entry(rtx_bundle / "manifest.json").sha256
    assert manifest.plugin == PluginInfo(version=__version__, architecture="x86_64")
    assert {path.name for path in rtx_bundle.iterdir()} == {
        *manifest.files,
        *ENGINE_FILES,
        "manifest.json",
        "engines.json",
    }


def test_build_command(own_rtx_bundle: Path) -> None:
    before = engine_entries(own_rtx_bundle)
    program = str(Path(sys.executable).with_name("fastmmoe"))
    limits = ["--max-tokens", "300", "--max-visual", "210", "--max-cache", "400", "--max-tiles", "1"]
    command = [program, "build", str(own_rtx_bundle), *limits, "--workspace", "512"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == ""
    lines = [line for line in result.stdout.splitlines() if not line.startswith("building ")]
    assert lines[0].startswith("tensorrt_rtx 1.7.1.") and lines[0].endswith("for SM 80, SM 86, SM 89, SM 120")
    assert lines[1] == "limits: 300 tokens a prompt, 210 of them visual, 400 cached, 1 tiles, 1 sequences at once"
    assert lines[2].startswith("the last build of this bundle took ")
    assert [line.partition(":")[0] for line in lines[3:6]] == [
        "built vision",
        "built embedding",
        "built language_model",
    ]
    assert lines[6:] == [f"wrote {', '.join(ENGINE_FILES)} in {own_rtx_bundle}"]
    engines = read_engines(own_rtx_bundle)
    assert engines.limits == Limits(max_tokens=300, max_visual=210, max_cache=400, max_tiles=1, max_batch=1)
    after = engine_entries(own_rtx_bundle)
    assert engines.files == after
    assert all(after[name] != before[name] for name in before)
    assert not [path for path in own_rtx_bundle.iterdir() if path.name.startswith(".")]


def test_device_build_and_progress(own_rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a Jetson: for the GPU of the machine and no other, but through TensorRT-RTX.
    edit_manifest(own_rtx_bundle, target="jetson-orin")
    tensorrt = replace(RTX, compute_capabilities=(87,), is_ahead_of_time=False)
    monkeypatch.setitem(TARGETS, "jetson-agx-orin", replace(TARGETS["jetson-agx-orin"], tensorrt=tensorrt))
    monkeypatch.setattr(engines_module, "find_gpu", lambda: Gpu("Orin", 87))
    monkeypatch.setattr(engines_module, "PROGRESS_SECONDS", 0.2)
    lines: list[str] = []
    engines = build_engines(own_rtx_bundle, FEW, say=lines.append)
    assert engines == read_engines(own_rtx_bundle)
    assert (engines.device, engines.compute_capabilities) == ("Orin", (87,))
    assert lines[0].endswith("engines for Orin, SM 87")
    assert any(line.startswith("building language_model: 1 s, ") for line in lines)


def test_untried_version_is_named(own_rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = replace(RTX.releases[0], version="1.70")
    monkeypatch.setitem(TARGETS, "rtx", replace(TARGETS["rtx"], tensorrt=replace(RTX, releases=(release,))))
    monkeypatch.setattr(engines_module._Builder, "build", stop_here)
    lines: list[str] = []
    with pytest.raises(EngineBuildFailed, match="stopped"):
        build_engines(own_rtx_bundle, FEW, say=lines.append)
    assert lines[1].endswith("has not been tried with this version of fastmmoe; 1.70 (PyPI) has")


def stop_here(*_: object) -> None:
    raise EngineBuildFailed("stopped")


def test_refused_graph_leaves_the_old_engines(own_rtx_bundle: Path, refusal: Refusal) -> None:
    before = {path.name: path.read_bytes() for path in own_rtx_bundle.iterdir()}
    graph = own_rtx_bundle / "language_model.onnx"
    graph.write_bytes(before[graph.name].replace(b"FmmTokenPrune", b"FmmTokenPrime"))
    line = refusal(run_main, ["build", str(own_rtx_bundle), "--no-verify"])
    assert "tensorrt_rtx 1.7.1." in line and "cannot read" in line and "FmmTokenPrime" in line
    before[graph.name] = graph.read_bytes()
    assert {path.name: path.read_bytes() for path in own_rtx_bundle.iterdir()} == before


def test_graph_of_another_manifest(own_rtx_bundle: Path, refusal: Refusal) -> None:
    policy = json.loads((own_rtx_bundle / "manifest.json").read_text())["policy"]
    edit_manifest(own_rtx_bundle, policy=policy | {"prune_layers": {"fastmmoe": [1]}, "stage_exponents": [1.0]})
    line = refusal(run_main, ["build", str(own_rtx_bundle)])
    assert line.endswith("they differ in keep_offsets.1, keep_slots.1, merge_offsets.1, merge_slots.1; export again")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -9 $$", "tensorrt_rtx was killed, as the system does where memory runs out"),
        ("echo boom; kill -6 $$", "tensorrt_rtx ended with signal 6: boom"),
        ("exit 3", "tensorrt_rtx ended with exit code 3: it said nothing"),
    ],
)
def test_sudden_end(script: str, words: str, own_rtx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = own_rtx_bundle.parent / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EngineBuildFailed, match=words):
        build_engines(own_rtx_bundle, FEW)


def test_interrupted_build(own_rtx_bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in own_rtx_bundle.iterdir()}
    program = str(Path(sys.executable).with_name("fastmmoe"))
    command = [program, "build", str(own_rtx_bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            assert any(line.startswith("built embedding") for line in process.stdout)
            time.sleep(1)  # TensorRT is at the language model now, for some seconds.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=KILL_SECONDS) == 130
            assert process.stderr.read() == "fastmmoe: interrupted; nothing was written\n"
        finally:
            process.kill()
    assert not Path(f"/proc/{children[0]}").exists()
    assert {path.name: path.read_bytes() for path in own_rtx_bundle.iterdir()} == before


def spoil_plugin(directory: Path) -> None:
    path = directory / "libfastmmoe_trt.so"
    path.write_bytes(path.read_bytes()[:-3] + b"9\0\0")


BUNDLE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other machine": (lambda d: None, f"for aarch64, this machine is {platform.machine()}: build on a machine of the"),
    "no plugin": (lambda d: (d / "libfastmmoe_trt.so").unlink(), "libfastmmoe_trt.so: missing; copy the whole bundle"),
    "other plugin": (spoil_plugin, "libfastmmoe_trt.so: damaged: SHA-256"),
    "plugin of another version": (
        lambda d: edit_manifest(d, plugin={"version": "0.0.9", "architecture": "aarch64"}),
        f"of version 0.0.9, this is fastmmoe {__version__}; export again with fastmmoe {__version__}, or install",
    ),
    "no plugin in the manifest": (
        lambda d: edit_manifest(d, plugin=None),
        "files has libfastmmoe_trt.so, which plugin, portable, linears and image_token_id say is not there",
    ),
    "unknown target": (
        lambda d: edit_manifest(d, target="tpu"),
        "target 'tpu': this fastmmoe has cpu, jetson-orin-nano, ",
    ),
    "cpu": (
        lambda d: edit_manifest(d, target="cpu"),
        "exported for cpu, which has no engines: run it with fastmmoe run",
    ),
}


@pytest.mark.parametrize("damage", BUNDLE_DAMAGE)
def test_bundle_that_cannot_be_built(damage: str, jetson_bundle: Path, refusal: Refusal) -> None:
    spoil, words = BUNDLE_DAMAGE[damage]
    spoil(jetson_bundle)
    files = {path.name for path in jetson_bundle.iterdir()}
    assert words in refusal(run_main, ["build", str(jetson_bundle)])
    assert {path.name for path in jetson_bundle.iterdir()} == files


@pytest.fixture
def bundle_for_here(jetson_bundle: Path) -> Path:
    """A bundle for jetson-orin that takes this machine for one."""
    edit_manifest(jetson_bundle, plugin={"version": __version__, "architecture": platform.machine()})
    return jetson_bundle


def test_tensorrt_is_not_installed(bundle_for_here: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    line = refusal(run_main, ["build", str(bundle_for_here)])
    assert "no Python package tensorrt for " in line and "apt package python3-libnvinfer" in line


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (None, r"no CUDA GPU found: engines of jetson-agx-orin are built on the device, SM 87 \(AGX Orin 32GB, AGX"),
        (
            Gpu("RTX 3090", 86),
            r"RTX 3090 is SM 86, target jetson-agx-orin is for SM 87 \(.*\): export with --target rtx$",
        ),
    ],
)
def test_wrong_gpu(gpu: Gpu | None, words: str, bundle_for_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.2.10"))  # type: ignore[arg-type]
    monkeypatch.setattr(engines_module, "find_gpu", lambda: gpu)
    with pytest.raises(BundleMismatch, match=words):
        build_engines(bundle_for_here)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max-tokens", "0"), "--max-tokens 0: expected at least 1"),
        (("--max-visual", "2"), None),
        (("--max-cache", "100"), "--max-cache 100: expected at least --max-tokens"),
        (("--max-tiles", "-1"), "--max-tiles -1: expected at least 1"),
        (("--workspace", "0"), "--workspace 0: expected at least 1 MiB"),
        (("--max-tokens", "x"), "'x'"),
    ],
)
def test_bad_limits(flags: tuple[str, ...], words: str | None, jetson_bundle: Path, refusal: Refusal) -> None:
    # Limits are looked at before the machine; good ones get as far as that.
    expected = "this machine is" if words is None else words
    assert expected in refusal(run_main, ["build", str(jetson_bundle), *flags])


def test_export_looks_for_what_it_needs_before_the_trace(
    small_dir: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMMOE_TRT_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr(templates, "export_module", stop_here)
    command = [str(small_dir), str(tmp_path / "out"), "--prune-layers", "1,2", "--target"]
    line = refusal(export_main, [*command, "jetson-orin"])
    assert "none.so; `make plugins` brings it" in line
    assert "takes fp16, bf16" in refusal(export_main, [*command, "jetson-orin", "--dtype", "fp32"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install 'tensorrt-rtx==1.7.1.*'" in refusal(export_main, [*command, "rtx"])
    assert not list(tmp_path.iterdir())
