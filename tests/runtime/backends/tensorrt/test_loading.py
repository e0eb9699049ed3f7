# SPDX-License-Identifier: Apache-2.0
"""What keeps a bundle's engines from being loaded: one line each, before anything is made on the device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe import __version__
from fastmmoe.runtime.backends.tensorrt import loading
from fastmmoe.runtime.backends.tensorrt.backend import TensorRT
from fastmmoe.runtime.backends.tensorrt.loading import load_engines
from fastmmoe.runtime.bundle.manifest import ENGINES, FORMAT, MANIFEST, FileEntry, Manifest, PluginInfo, read_engines
from fastmmoe.runtime.errors import BackendMissing, BundleMismatch, FastmmoeError, RunFailed
from fastmmoe.runtime.machines.gpu import BINDINGS
from tests.support.double import Double, Modules
from tests.support.toy_engines import LIMITS, write_engine_bundle, write_engines


class Case:
    """A bundle with engines, and the double that they are loaded on."""

    def __init__(self, double: Double, directory: Path) -> None:
        self.double, self.directory = double, directory
        self.modules: Modules = double.modules()
        self.manifest: Manifest = write_engine_bundle(directory, self.modules.trt)

    def start(self, **settings: Any) -> None:
        """A fresh device."""
        self.modules = self.double.modules(**settings)

    def again(self, what: str) -> str:
        """A message about engines.json."""
        return f"{self.directory / ENGINES}: {what}; build the engines again: fastmmoe build {self.directory}"

    def refuses(self, kind: type[FastmmoeError], words: str, **options: Any) -> None:
        """Loading fails with these words, which are all, and leaves nothing on the device."""
        with pytest.raises(FastmmoeError) as refusal:
            load_engines(self.directory, self.manifest, **options)
        assert (type(refusal.value), str(refusal.value)) == (kind, words)
        assert "\n" not in words
        sim = self.modules.control.current()
        assert sim.counters.allocations == 0
        assert (sim.streams, sim.events, sim.libraries) == ({}, {}, [])


@pytest.fixture
def case(double: Double, tmp_path: Path) -> Case:
    return Case(double, tmp_path / "bundle")


def test_engines_that_fit_are_loaded(case: Case) -> None:
    backend = load_engines(case.directory, case.manifest)
    assert isinstance(backend, TensorRT) and backend.manifest is case.manifest and backend.longest == 64
    assert case.modules.control.current().libraries == [str(case.directory / "libfastmmoe_trt.so")]
    backend.close()
    device, pinned = case.modules.control.live()
    assert (device.bytes, pinned.bytes, case.modules.control.current().streams) == (0, 0, {})


def test_engines_are_not_portable(case: Case) -> None:
    case.refuses(BundleMismatch, f"{case.directory}: the bundle has no portable variant", portable=True)


def test_no_engines_yet(case: Case) -> None:
    (case.directory / ENGINES).unlink()
    case.refuses(BundleMismatch, f"{case.directory}: has no engines yet: fastmmoe build {case.directory}")


def test_engines_of_another_version(case: Case) -> None:
    reads = f"format {FORMAT + 1}, fastmmoe {__version__} reads format {FORMAT}"
    for changes, words in (
        ({"fastmmoe_version": "0.0"}, f"built by fastmmoe 0.0, this is {__version__}"),
        ({"format": FORMAT + 1}, reads),
    ):
        write_engines(case.directory, case.modules.trt, **changes)
        case.refuses(BundleMismatch, case.again(words))


def test_limits_that_no_build_takes(case: Case) -> None:
    """Greater ones would have memory and time taken for calls that the engines refuse."""
    limits = msgspec.structs.replace(LIMITS, max_cache=1 << 24)
    write_engines(case.directory, case.modules.trt, limits=limits)
    longest = case.manifest.processor.max_position_embeddings
    case.refuses(
        BundleMismatch,
        case.again(
            f"has limits that no build takes, --max-cache {1 << 24}: expected at most {longest}, the model's longest "
            f"sequence"
        ),
    )


@pytest.mark.parametrize(("limit", "engine"), [("max_tokens", "embedding"), ("max_tiles", "vision")])
def test_limits_of_other_engines(limit: str, engine: str, case: Case) -> None:
    limits = msgspec.structs.replace(LIMITS, **{limit: getattr(LIMITS, limit) + 1})
    write_engines(case.directory, case.modules.trt, limits=limits)
    words = (
        rf"{engine}\.engine: takes \w+ of \[[\d, ]+\] to \[[\d, ]+\], expected .* by the limits in engines\.json; build"
    )
    with pytest.raises(BundleMismatch, match=words):
        load_engines(case.directory, case.manifest)
    assert [live.allocations for live in case.modules.control.live()] == [0, 0]


def test_an_engine_of_no_bytes(case: Case) -> None:
    path = case.directory / "vision.engine"
    path.write_bytes(b"")
    write_engines(case.directory, case.modules.trt)
    with pytest.raises(BundleMismatch, match=r"vision\.engine: is empty; build the engines again: fastmmoe build "):
        load_engines(case.directory, case.manifest)


def test_engines_of_another_bundle(case: Case) -> None:
    with (case.directory / MANIFEST).open("a") as file:
        file.write("\n")
    case.refuses(BundleMismatch, case.again("built from another export of the bundle"))


@pytest.mark.parametrize("name", ["vision.engine", "embedding.engine", "language_model.engine"])
def test_engines_that_are_not_all_there(name: str, case: Case) -> None:
    path = case.directory / name
    size = path.stat().st_size
    build = f"build the engines again: fastmmoe build {case.directory}"
    path.write_bytes(path.read_bytes()[:-1])
    case.refuses(BundleMismatch, f"{path}: {size - 1} bytes, expected {size}; {build}")
    path.unlink()
    case.refuses(BundleMismatch, f"{path}: missing; {build}")
    engines = read_engines(case.directory)
    assert engines is not None
    files = {file: entry for file, entry in engines.files.items() if file != name}
    edited = msgspec.structs.replace(engines, files=files)
    (case.directory / ENGINES).write_bytes(msgspec.json.encode(edited))
    case.refuses(BundleMismatch, case.again(f"does not name {name}"))


def test_engines_for_another_plugin(case: Case) -> None:
    write_engines(case.directory, case.modules.trt, plugin_version="0.0")
    case.refuses(BundleMismatch, case.again(f"built with plugin 0.0, the bundle has {__version__}"))


def test_a_plugin_of_another_version(case: Case) -> None:
    plugin = PluginInfo(version="0.0", architecture="x86_64")
    case.manifest = msgspec.structs.replace(case.manifest, plugin=plugin)
    words = (
        f"{case.directory / 'libfastmmoe_trt.so'}: of version 0.0, this is fastmmoe {__version__}; export again with "
        f"fastmmoe {__version__}, or install fastmmoe 0.0 here"
    )
    case.refuses(BundleMismatch, words)


def test_no_cuda_bindings(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, BINDINGS, None)
    install = "pip install 'fastmmoe[tensorrt]'"
    case.refuses(BackendMissing, f"cuda-bindings is not installed for {sys.executable}: {install}")


def test_cuda_bindings_that_cannot_be_loaded(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_cuda.py").write_text("raise ImportError('libcudart.so.13:\\n cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(loading, "BINDINGS", "broken_cuda")
    case.refuses(BackendMissing, "cuda-bindings cannot be loaded: libcudart.so.13: cannot open")


def test_no_driver(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.start(gpu="old")
    ok = case.modules.cudart.cudaError_t.cudaSuccess
    monkeypatch.setattr(case.modules.cudart, "cudaDriverGetVersion", lambda: (ok, 0))
    case.refuses(BackendMissing, "no NVIDIA driver is loaded: engines run on an NVIDIA GPU")


def test_a_driver_that_is_too_old(case: Case) -> None:
    case.start(gpu="old")
    words = (
        "the NVIDIA driver is for CUDA 12.2, cuda-bindings need 13.0: install a newer driver, or pip install "
        "'cuda-bindings==12.*'"
    )
    case.refuses(BackendMissing, words)


def test_no_gpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of CUDA's, or none and no GPU either."""
    words = "no NVIDIA GPU is visible: engines run on one (see nvidia-smi and $CUDA_VISIBLE_DEVICES)"
    case.start(gpu="none")
    case.refuses(BackendMissing, words)
    case.start()
    ok = case.modules.cudart.cudaError_t.cudaSuccess
    monkeypatch.setattr(case.modules.cudart, "cudaGetDeviceCount", lambda: (ok, 0))
    case.refuses(BackendMissing, words)


def test_another_gpu(case: Case) -> None:
    """By its compute capability, and by its name where engines are for one kind of GPU."""
    case.start(gpu="sm=75,name=T4")
    case.refuses(BundleMismatch, case.again("built for SM 89, this GPU is T4, SM 75"))
    write_engines(case.directory, case.modules.trt, compute_capabilities=(80, 89))
    case.refuses(BundleMismatch, case.again("built for SM 80, SM 89, this GPU is T4, SM 75"))
    write_engines(case.directory, case.modules.trt, compute_capabilities=(75,), device="Orin")
    case.refuses(BundleMismatch, case.again("built for Orin, this GPU is T4, SM 75"))
    write_engines(case.directory, case.modules.trt, device="L4")
    case.start(gpu="sm=89,name=L4")
    load_engines(case.directory, case.manifest).close()


def test_no_tensorrt(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    install = "pip install 'tensorrt-rtx==1.7.1.*'"
    case.refuses(BackendMissing, f"no Python package tensorrt_rtx for {sys.executable}: {install}")


def test_another_tensorrt(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.modules.trt, "__version__", "1.7.2.5")
    case.refuses(BundleMismatch, case.again("built by tensorrt_rtx 1.7.1.116, 1.7.2.5 is installed here"))


def test_a_module_that_is_not_the_targets(case: Case) -> None:
    """What the file names is not imported."""
    write_engines(case.directory, case.modules.trt, module="antigravity")
    case.refuses(BundleMismatch, case.again("built by 'antigravity', expected tensorrt_rtx for target rtx"))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(("gpu", "words"), [("", "free"), ("sm=89,name=Orin,integrated=1", "in all")])
def test_memory_that_is_too_small(gpu: str, words: str, case: Case) -> None:
    """Engines and experts together: 2.5 GB and 72 bytes. On Jetson the page cache counts as free, so all of it is."""
    engines = read_engines(case.directory)
    assert engines is not None
    name = "language_model.engine"
    others = sum(entry.bytes for file, entry in engines.files.items() if file != name)
    with (case.directory / name).open("r+b") as file:
        file.truncate(2_500_000_000 - others)
    entry = FileEntry(bytes=2_500_000_000 - others, sha256="0" * 64)
    write_engines(case.directory, case.modules.trt, files=engines.files | {name: entry})
    case.start(gpu=gpu, memory=2_500_000_071)
    kind = "Orin" if gpu else "Simulated GPU"
    advice = "end other programs, or export with --weights int4"
    case.refuses(RunFailed, f"{case.directory}: its weights are 2.50 GB, {kind} has 2.50 GB {words}: {advice}")


def test_memory_that_others_use(case: Case) -> None:
    """Counts where the GPU has memory of its own; on Jetson it may be the page cache's, so loading goes on."""
    engines = read_engines(case.directory)
    assert engines is not None
    weights = 72 + sum(entry.bytes for entry in engines.files.values())
    for gpu, fits in (("", False), ("sm=89,integrated=1", True)):
        case.start(gpu=gpu, memory=weights + 10_000_000)
        case.modules.cudart.cudaMalloc(10_000_000)
        case.modules.control.reset_counters()
        words = (
            r"do not fit on Simulated GPU: end other .* \(CUDA: cudaMalloc of [^\n]*$"
            if fits
            else r"free: end other programs, or export with --weights int4$"
        )
        with pytest.raises(RunFailed, match=words):
            load_engines(case.directory, case.manifest)
        assert case.modules.control.live()[0].allocations == 1


def test_engines_that_tensorrt_refuses(case: Case) -> None:
    """A damaged file of the right size: everything that was made is given back."""
    path = case.directory / "language_model.engine"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleMismatch) as refusal:
        load_engines(case.directory, case.manifest)
    assert str(refusal.value).startswith(f"{path}: tensorrt_rtx 1.7.1.116 cannot read it: ")
    assert "\n" not in str(refusal.value)
    sim, (device, pinned) = case.modules.control.current(), case.modules.control.live()
    assert (device.bytes, pinned.bytes, sim.streams, sim.events) == (0, 0, {}, {})
