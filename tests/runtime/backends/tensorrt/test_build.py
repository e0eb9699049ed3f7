# SPDX-License-Identifier: Apache-2.0
"""Builds of engines: what is refused before them, what is published, and why a process ended.

Engines are built in tests/end_to_end/test_engines.py.
"""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.backends.tensorrt import build, builder_memory
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed, EngineReply, EngineRequest
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions, build_engines, show_commands
from fastmmoe.runtime.bundle.manifest import (
    MANIFEST,
    PluginInfo,
    file_entry,
    load_manifest,
    read_engines,
    write_manifest,
)
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.machines.gpu import Gpu
from fastmmoe.runtime.machines.targets import JETPACK_7, RTX

ORIN = Gpu("Orin", 87)


def write_target(directory: Path, target: str) -> None:
    write_manifest(directory, msgspec.structs.replace(load_manifest(directory), target=target))


@pytest.fixture
def built(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy bundle for Jetson Orin, on such a machine whose TensorRT writes the graph's name as its engine.

    Its attributes may be changed: version of TensorRT, gpu, architecture of the plugin, requests that were made.
    """
    write_target(toy_bundle, "jetson-orin")
    machine = SimpleNamespace(directory=toy_bundle, version="10.16.1", gpu=ORIN, plugin=platform.machine(), requests=[])

    def run(_: Any, request: EngineRequest, tick: Any) -> EngineReply:
        machine.requests.append(request)
        tick()
        path = Path(request.output)
        path.write_text(path.stem)
        return EngineReply(engine=file_entry(path))

    def plugin(*_: Any) -> PluginInfo:
        return PluginInfo(version="0.1", architecture=machine.plugin)

    monkeypatch.setattr(build, "check_bundled_plugin", plugin)
    monkeypatch.setattr(build.tensorrt_api, "load_module", lambda *_: SimpleNamespace(__version__=machine.version))
    monkeypatch.setattr(build, "find_gpu", lambda: machine.gpu)
    monkeypatch.setattr(build._Builder, "_run", run)
    return machine


def test_engines_are_published_with_what_they_are(built: Any) -> None:
    lines: list[str] = []
    engines = build_engines(built.directory, BuildOptions(max_tokens=40, workspace_mib=7), lines.append)
    assert (engines.device, engines.compute_capabilities, engines.module) == ("Orin", (87,), "tensorrt")
    assert (engines.tensorrt_version, engines.plugin_version, engines.limits.max_tokens) == ("10.16.1", "0.1", 40)
    assert engines.bundle_sha256 == file_entry(built.directory / MANIFEST).sha256
    assert list(engines.files) == ["vision.engine", "embedding.engine", "language_model.engine"]
    assert (built.directory / "vision.engine").read_text() == "vision" and read_engines(built.directory) == engines
    assert not [path for path in built.directory.iterdir() if path.name.startswith(".")]
    assert list(engines.seconds) == list(engines.files) and all(0 <= s < 5 for s in engines.seconds.values())
    assert lines[0] == "tensorrt 10.16.1, engines for Orin, SM 87" and lines[1].startswith("limits: 40 tokens a prompt")
    assert [re.sub(r"[\d.]+ s", "N s", line) for line in lines[2:4]] == [
        "building vision: N s ...",
        "built vision: 0.0 MB (N s)",
    ]
    for request in built.requests:
        assert request.compute_capabilities == () and request.workspace_mib == 7
        assert request.timing_cache == str(built.directory / "timing.cache")
    assert [len(request.profiles) for request in built.requests] == [1, 1, 2]


def test_a_version_that_was_never_tried_is_said(built: Any) -> None:
    for built.version, is_said in (("10.16.1", False), ("10.3.0", True), ("10.1", True), ("11.0", True)):
        lines: list[str] = []
        build_engines(built.directory, None, lines.append)
        words = f"tensorrt {built.version} has not been tried with this version of fastmmoe; 10.16 (JetPack 7.2) has"
        assert (lines[1] == words) is is_said


def test_what_the_last_build_took_is_said(built: Any) -> None:
    engines = build_engines(built.directory, None, lambda _: None)
    took = dict(zip(engines.files, (10.0, 1.0, 200.0), strict=True))
    path = built.directory / "engines.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(engines, seconds=took)))
    lines: list[str] = []
    build_engines(built.directory, None, lines.append)
    assert lines[2] == "the last build of this bundle took 211 s"
    assert [line for line in lines if line.startswith("building")] == [
        "building vision: 0 s, 10 s the last time ...",
        "building embedding: 0 s, 1 s the last time ...",
        "building language_model: 0 s, 200 s the last time ...",
    ]
    path.write_text("damaged")
    lines.clear()
    build_engines(built.directory, None, lines.append)
    assert "building vision: 0 s ..." in lines


def test_without_memory_nothing_is_built(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder_memory, "largest_constants", lambda _: 10**18)
    with pytest.raises(EngineBuildFailed, match=r"the weights that the builder takes are 1000000000\.0 GB: end other"):
        build_engines(built.directory, None, lambda _: None)
    assert built.requests == []


def test_a_version_of_a_target_that_was_never_tried(built: Any) -> None:
    write_target(built.directory, "jetson-agx-orin@jp6.2")
    built.version = "10.3.0"
    lines: list[str] = []
    build_engines(built.directory, None, lines.append)
    assert lines[1] == "tensorrt 10.3.0 has not been tried with this version of fastmmoe"


def test_commands_are_shown_without_tensorrt(built: Any) -> None:
    built.version, built.gpu, built.plugin = None, None, "riscv64"
    before = sorted(built.directory.iterdir())
    lines: list[str] = []
    show_commands(built.directory, BuildOptions(max_tokens=40, workspace_mib=7), lines.append)
    assert sum(line.startswith("trtexec ") for line in lines) == 3
    assert "--memPoolSize=workspace:7" in lines[-1]
    assert built.requests == [] and sorted(built.directory.iterdir()) == before
    with pytest.raises(InvalidRequest, match="--max-tokens 0"):
        show_commands(built.directory, BuildOptions(max_tokens=0), lines.append)


def test_a_failure_leaves_the_engines_that_were_there(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build_engines(built.directory, None, lambda _: None)
    before = {path.name: path.read_bytes() for path in built.directory.iterdir()}
    monkeypatch.setattr(build._Builder, "_run", lambda *_: EngineReply(engine=None, error="no importer"))
    with pytest.raises(EngineBuildFailed, match=r"^no importer$"):
        build_engines(built.directory, None, lambda _: None)
    assert {path.name: path.read_bytes() for path in built.directory.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": None}, "no CUDA GPU found: engines of jetson-agx-orin are built on the device, SM 87 (AGX Orin 32GB"),
        (
            {"gpu": Gpu("L4", 89)},
            "GPU L4 is SM 89, target jetson-agx-orin is for SM 87 (AGX Orin 32GB, AGX Orin 64GB): export with "
            "--target l4 or l40s or rtx",
        ),
        ({"gpu": Gpu("T4", 75)}, "GPU T4 is SM 75, target jetson-agx-orin is for SM 87 (AGX Orin 32GB, AGX Orin 64GB)"),
        ({"plugin": "riscv64"}, f"for riscv64, this machine is {platform.machine()}: build on a machine of the bundle"),
    ],
)
def test_other_machines(changes: dict[str, Any], words: str, built: Any) -> None:
    vars(built).update(changes)
    with pytest.raises(BundleMismatch, match=re.escape(words)):
        build_engines(built.directory, None, lambda _: None)
    assert built.requests == []


def test_targets_without_engines(toy_bundle: Path) -> None:
    words = r"exported for cpu, which has no engines: .* one of the targets jetson-orin-nano, .*, b200, rtx$"
    with pytest.raises(InvalidRequest, match=words):
        build_engines(toy_bundle)
    write_target(toy_bundle, "laptop")
    with pytest.raises(BundleMismatch, match=r"target 'laptop': this fastmmoe has cpu, jetson-orin-nano, .*, rtx$"):
        build_engines(toy_bundle)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(workspace_mib=0), "--workspace 0: expected at least 1 MiB"),
        (BuildOptions(max_tokens=0), "--max-tokens 0: expected at least 1"),
        (BuildOptions(max_cache=65), "--max-cache 65: expected at most 64, the model's longest sequence"),
    ],
)
def test_limits_are_checked_before_tensorrt_is_loaded(options: BuildOptions, words: str, built: Any) -> None:
    built.version = None
    with pytest.raises(InvalidRequest, match=words):
        build_engines(built.directory, options, lambda _: None)


def builder(directory: Path, tensorrt: Any = JETPACK_7) -> build._Builder:
    return build._Builder(directory, directory, tensorrt, None, {}, lambda _: None)


def request_of(tmp_path: Path) -> EngineRequest:
    return EngineRequest(
        module="nothing_of_this_name",
        graph="g",
        plugin="p",
        output=str(tmp_path / "e"),
        profiles=(),
        compute_capabilities=(),
        workspace_mib=None,
        timing_cache=None,
    )


def test_another_process_says_what_is_missing(tmp_path: Path) -> None:
    """The whole way there and back, with a package that is not installed."""
    reply = builder(tmp_path)._run(request_of(tmp_path), lambda: None)
    assert reply.engine is None and "nothing_of_this_name" in reply.error


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "tensorrt was killed, as the system does where memory runs out: end "),
        ("import os; os.kill(os.getpid(), 11)", "tensorrt ended with signal 11: it said nothing"),
        ("print('first'); print('last  line\\n\\n'); exit(3)", "tensorrt ended with exit code 3: last line"),
    ],
)
def test_a_process_that_ends_without_a_reply(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reply.json").write_text("of an earlier engine")
    popen = subprocess.Popen
    monkeypatch.setattr(build.subprocess, "Popen", lambda _, **rest: popen([sys.executable, "-c", program], **rest))
    with pytest.raises(EngineBuildFailed, match=f"^{re.escape(words)}"):
        builder(tmp_path)._run(request_of(tmp_path), lambda: None)


def test_a_long_build_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PROGRESS_SECONDS", 0.05)
    ticks: list[int] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:

        def tick() -> None:
            ticks.append(1)
            if len(ticks) == 2:
                process.send_signal(signal.SIGTERM)

        assert build._wait(process, tick) == -signal.SIGTERM
    assert len(ticks) >= 2


def test_libraries_have_the_names_that_the_parser_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "tensorrt_rtx_libs"
    package.mkdir(parents=True)
    for name in ("__init__.py", "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1.7"):
        (package / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    # Another test may have imported the real one.
    monkeypatch.delitem(sys.modules, "tensorrt_rtx_libs", raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    for _ in range(2):
        environment = builder(tmp_path, RTX)._environment()
    links = tmp_path / "lib"
    assert environment["LD_LIBRARY_PATH"] == f"{links}:/before"
    assert {path.name: path.resolve().name for path in links.iterdir()} == {
        "libtensorrt_rtx.so": "libtensorrt_rtx.so.1",
        "libtensorrt_onnxparser_rtx.so": "libtensorrt_onnxparser_rtx.so.1.7",
    }
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert builder(tmp_path)._environment()["LD_LIBRARY_PATH"] == str(links)
