# SPDX-License-Identifier: Apache-2.0
"""What differs between TensorRT versions, with a stand-in for the package; its names against NVIDIA's real bindings.

Engines of the real package are built in tests/end_to_end/test_engines.py.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.backends.tensorrt import api as tensorrt_api
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed, EngineRequest, build_engine, load_module, one_line

ENGINE = b"an engine" * 1000
PROFILE = {"x": ((0, 4), (2, 4), (8, 4))}


class Severity(enum.IntEnum):
    ERROR = 1
    WARNING = 2


class Logger:
    Severity = Severity


class Config:
    def __init__(self) -> None:
        self.profiles: list[Any] = []
        self.capabilities: dict[int, str] = {}
        self.pools: dict[str, int] = {}
        self.features: dict[str, bool] = {}
        self.num_compute_capabilities = 0
        self.max_aux_streams = -1
        self.timings: Any = None
        self.offered: list[bytes] = []

    def create_timing_cache(self, data: bytes) -> Any:
        """Saved times begin with the version that measured them; None where they are damaged."""
        self.offered.append(data)
        return None if data == b"damaged" else SimpleNamespace(data=data, serialize=lambda: b"here: more times")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data and not cache.data.startswith(b"here"):
            return False
        self.timings = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.timings

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.capabilities[index] = capability

    def set_preview_feature(self, feature: str, enable: bool) -> None:
        self.features[feature] = enable

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class Parser:
    """Reads any graph, but one whose name says that it is bad."""

    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None:
        pass

    def parse_from_file(self, path: str) -> bool:
        return "bad" not in path

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(node_name=lambda: "n1", node_operator=lambda: "Foo", desc=lambda: "no\n importer")


class FakeTensorRT:
    """The package as far as `build_engine` uses it. flag: value of STRONGLY_TYPED, which is 0 in TensorRT 11."""

    __name__ = "tensorrt"
    ILogger, IStreamWriter, OnnxParser = Logger, object, Parser
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
    ComputeCapability = SimpleNamespace(SM80="80", SM120="120")

    def __init__(self, version: str, *, flag: int, streams: bool) -> None:
        self.__version__ = version
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=flag)
        self.config = Config()
        self.network_flags: int | None = None
        self.engine: bytes | None = ENGINE
        self.has_gpu = self.loads_plugin = True
        trt = self

        class Builder:
            def __init__(self, logger: Any) -> None:
                if not trt.has_gpu:
                    logger.log(Severity.WARNING, "a warning")
                    logger.log(Severity.ERROR, "cudaError 35")
                    raise TypeError("pybind11::init(): factory function returned nullptr")

            def create_network(self, flags: int) -> Any:
                trt.network_flags = flags
                inputs = [SimpleNamespace(name="x", shape=(-1, 4)), SimpleNamespace(name="fixed", shape=(3,))]
                return SimpleNamespace(num_inputs=2, get_input=inputs.__getitem__)

            def create_builder_config(self) -> Config:
                return trt.config

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
                return trt.engine

        def to_stream(self: Any, network: Any, config: Config, writer: Any) -> bool:
            for start in range(0, len(trt.engine or b""), 4096):
                writer.write((trt.engine or b"")[start : start + 4096])
            return trt.engine is not None

        if streams:
            Builder.build_serialized_network_to_stream = to_stream  # type: ignore[attr-defined]
        self.Builder = Builder

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(load_library=lambda path: object() if self.loads_plugin else None)


def request(tmp_path: Path, **changes: Any) -> EngineRequest:
    given: dict[str, Any] = {
        "module": "tensorrt",
        "graph": "graph.onnx",
        "plugin": "plugin.so",
        "output": str(tmp_path / "engine"),
        "profiles": (PROFILE, PROFILE),
        "compute_capabilities": (),
        "workspace_mib": None,
        "timing_cache": None,
    }
    return EngineRequest(**(given | changes))


@pytest.fixture(params=["10.3", "10.16", "11.4"])
def trt(request: pytest.FixtureRequest) -> FakeTensorRT:
    """Flag and builder as in NVIDIA's bindings of that version (test_real_bindings)."""
    version: str = request.param
    return FakeTensorRT(version, flag=0 if version == "11.4" else 1, streams=version != "10.3")


def test_every_version_writes_the_engine(trt: FakeTensorRT, tmp_path: Path) -> None:
    entry = build_engine(trt, request(tmp_path))
    assert (tmp_path / "engine").read_bytes() == ENGINE
    assert (entry.bytes, entry.sha256) == (len(ENGINE), hashlib.sha256(ENGINE).hexdigest())
    assert trt.network_flags == (1 if trt.__version__ == "11.4" else 2)
    assert trt.config.profiles == [PROFILE, PROFILE]
    assert trt.config.capabilities == {} and trt.config.pools == {} and trt.config.num_compute_capabilities == 0


def test_caches_are_written_where_they_are(trt: FakeTensorRT, tmp_path: Path) -> None:
    """TensorRT gives a plugin's output the address of an input only where it is asked to."""
    build_engine(trt, request(tmp_path))
    assert trt.config.features == {"aliased": True}


def test_contexts_ask_for_no_streams(trt: FakeTensorRT, tmp_path: Path) -> None:
    """The runtime gives them none."""
    build_engine(trt, request(tmp_path))
    assert trt.config.max_aux_streams == 0 and trt.config.offered == []


@pytest.mark.parametrize(
    ("saved", "offered"),
    [
        (None, [b""]),
        (b"here: times", [b"here: times"]),
        (b"elsewhere: times", [b"elsewhere: times", b""]),
        (b"damaged", [b"damaged", b""]),
    ],
)
def test_times_are_kept_for_the_next_build(
    saved: bytes | None, offered: list[bytes], trt: FakeTensorRT, tmp_path: Path
) -> None:
    cache = tmp_path / "timing.cache"
    if saved is not None:
        cache.write_bytes(saved)
    build_engine(trt, request(tmp_path, timing_cache=str(cache)))
    assert trt.config.offered == offered and cache.read_bytes() == b"here: more times"
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "timing.cache"}


def test_a_failed_build_leaves_the_times(trt: FakeTensorRT, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"here: times")
    trt.engine = None
    with pytest.raises(EngineBuildFailed):
        build_engine(trt, request(tmp_path, timing_cache=str(cache)))
    assert cache.read_bytes() == b"here: times"


def test_compute_capabilities_and_workspace(tmp_path: Path) -> None:
    trt = FakeTensorRT("1.7", flag=1, streams=True)
    build_engine(trt, request(tmp_path, compute_capabilities=(80, 120), workspace_mib=3))
    assert trt.config.num_compute_capabilities == 2
    assert trt.config.capabilities == {0: "80", 1: "120"}
    assert trt.config.pools == {"workspace": 3 << 20}


@pytest.mark.parametrize(
    ("state", "changes", "words"),
    [
        ({"has_gpu": False}, {}, r"cannot start, which needs a GPU and its driver: cudaError 35$"),
        ({"loads_plugin": False}, {}, r"cannot load plugin\.so: no reason given$"),
        ({}, {"graph": "bad.onnx"}, r"cannot read bad\.onnx: node n1 \(Foo\): no importer$"),
        ({}, {"profiles": ({},)}, r"the graph's inputs are not those of its manifest, they differ in x; export again$"),
        ({}, {"profiles": (PROFILE | {"y": PROFILE["x"]},)}, r"they differ in y; export again$"),
        ({"engine": None}, {}, r"builds no engine from graph\.onnx: no reason given$"),
    ],
)
def test_refusals(
    state: dict[str, Any], changes: dict[str, Any], words: str, trt: FakeTensorRT, tmp_path: Path
) -> None:
    vars(trt).update(state)
    with pytest.raises(EngineBuildFailed, match=words):
        build_engine(trt, request(tmp_path, **changes))


def test_full_disk(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.engine = ENGINE * 100
    with pytest.raises(OSError, match="No space left"):
        build_engine(trt, request(tmp_path, output="/dev/full"))


@pytest.mark.parametrize("failing", [0, 2])
def test_passing_write_error(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorRT goes on after an exception and says that all is well.
    calls = iter(range(100))

    def write(self: Any, data: bytes) -> None:
        if next(calls) == failing:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(tensorrt_api._HashingWriter, "write", write)
    with pytest.raises(OSError, match="Input/output error"):
        build_engine(FakeTensorRT("10.16", flag=1, streams=True), request(tmp_path))


def test_package_that_is_not_installed() -> None:
    with pytest.raises(EngineBuildFailed, match=r"no Python package no_such_tensorrt for .*python.*: pip install it$"):
        load_module("no_such_tensorrt", "pip install it")


def test_package_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged_tensorrt.py").write_text("raise ImportError('libnvinfer.so.10:\\n cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineBuildFailed, match=r"damaged_tensorrt cannot be loaded: libnvinfer\.so\.10: cannot open$"):
        load_module("damaged_tensorrt", "")


def test_container_of_another_jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "libnvdla_compiler.so: cannot open shared object file: No such file or directory"
    (tmp_path / "igpu_tensorrt.py").write_text(f"raise ImportError({said!r})")
    monkeypatch.syspath_prepend(tmp_path)
    words = f"igpu_tensorrt cannot be loaded: {said}; JetPack 7.2 has no such library any more, .* or build outside"
    with pytest.raises(EngineBuildFailed, match=words):
        load_module("igpu_tensorrt", "")


def test_long_messages_are_cut() -> None:
    assert one_line(" a\n\tb ") == "a b"
    assert one_line("x" * 1000) == "x" * 400 + " ..."


# NVIDIA's wheels of the bindings alone: without the libraries they wrap, they load over libraries of the same names
# that hold empty functions. That is enough to see which names a version has, and what becomes of a missing GPU.
BINDINGS = (
    "tensorrt-cu12-bindings==10.3.0",
    "tensorrt-cu13-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
)
EMPTY_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
USED = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
    "IBuilderConfig": "set_memory_pool_limit set_preview_feature add_optimization_profile max_aux_streams "
    "create_timing_cache set_timing_cache get_timing_cache",
    "ITimingCache": "serialize",
    "INetworkDefinition": "num_inputs get_input",
    "IOptimizationProfile": "set_shape",
    "IPluginRegistry": "load_library",
    "ITensor": "name shape",
    "MemoryPoolType": "WORKSPACE",
    "PreviewFeature": "ALIASED_PLUGIN_IO_10_03",
    "OnnxParser": "parse_from_file num_errors get_error",
    "ParserError": "node_name node_operator desc",
}
LOOK = """
import json, sys
import tensorrt_bindings as trt
missing = [f"{owner}.{name}" for owner, names in json.loads(sys.argv[1]).items() for name in names.split()
           if not hasattr(getattr(trt, owner), name)]
severity = trt.ILogger.Severity
print(json.dumps({
    "missing": missing, "flag": int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    "streams": hasattr(trt.Builder, "build_serialized_network_to_stream"), "writer": hasattr(trt, "IStreamWriter"),
    "capabilities": hasattr(trt.IBuilderConfig, "set_compute_capability"),
    "severity": [severity.INTERNAL_ERROR <= severity.ERROR, severity.WARNING <= severity.ERROR],
}))
"""


def write_empty_libraries(folder: Path, major: str) -> None:
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in EMPTY_FUNCTIONS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", str(source), "-o", str(folder / f"lib{name}.so.{major}")], check=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("package", BINDINGS)
def test_real_bindings(package: str, tmp_path: Path) -> None:
    assert shutil.which("gcc"), "needs gcc"
    version = package.partition("==")[2]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--target", str(tmp_path / "site"), package], check=True)
    write_empty_libraries(tmp_path, version.partition(".")[0])
    packages = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths = {"PYTHONPATH": os.pathsep.join(packages), "LD_LIBRARY_PATH": str(tmp_path)}
    environment = os.environ | paths
    look = [sys.executable, "-c", LOOK, json.dumps(USED)]
    found = json.loads(subprocess.run(look, env=environment, capture_output=True, text=True, check=True).stdout)
    assert found == {
        "missing": [],
        "flag": 0 if version.startswith("11.") else 1,
        "streams": version != "10.3.0",
        "writer": version != "10.3.0",
        "capabilities": False,
        "severity": [True, False],
    }
    given: dict[str, Any] = {"module": "tensorrt_bindings", "graph": "g", "plugin": "p", "output": "o", "profiles": []}
    (tmp_path / "request.json").write_text(
        json.dumps(given | {"compute_capabilities": [], "workspace_mib": None, "timing_cache": None})
    )
    build = [sys.executable, "-m", "fastmmoe.runtime.backends.tensorrt.api", "request.json", "reply.json"]
    subprocess.run(build, env=environment, cwd=tmp_path, check=True)
    error = json.loads((tmp_path / "reply.json").read_text())["error"]
    assert error == (f"tensorrt_bindings {version} cannot start, which needs a GPU and its driver: no reason given")
