# SPDX-License-Identifier: Apache-2.0
"""What pytest makes for every test: the golden directory and checkpoints, a place for stamps, a plugin library."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe import __version__
from fastmmoe.runtime.types import Array
from tests.support.double import Double, installed
from tests.support.golden import (
    TRIMMED,
    GoldenArray,
    load_array,
    load_last_logits,
    unpack_golden,
    write_checkpoint,
    write_wide_checkpoint,
)
from tests.support.rounding import rounding_of

LONG = {
    "tests/calibration/test_calibrate.py",
    "tests/calibration/test_workers.py",
    "tests/end_to_end/test_engine_matrix.py",
    "tests/exporter/check/test_bundle.py",
    "tests/exporter/graph/test_pack_linears.py",
    "tests/exporter/graph/test_stitching.py",
    "tests/exporter/test_demo.py",
    "tests/plugins/cuda/test_attention_emulated.py",
    "tests/plugins/cuda/test_sparse_moe_experts.py",
    "tests/plugins/tensorrt/test_lean.py",
    "tests/plugins/test_panels.py",
    "tests/plugins/test_sanitizers.py",
    "tests/runtime/backends/tensorrt/test_backend.py",
    "tests/scripts/test_gpu_acceptance.py",
    "tests/scripts/test_sass_report.py",
    "tests/scripts/test_train_demo.py",
    "tests/test_readme.py",
}
"""Files that take about twenty seconds or more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project's tests."""
    parser.addoption("--engines", action="store_true", help="run the tests that are marked engines on the double's")
    parser.addoption("--bundles", type=Path, metavar="DIR", help="where exported bundles are kept, and found again")


def pytest_sessionstart() -> None:
    """Collecting tests makes many objects and no garbage to speak of."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run on one worker, unless a mark says otherwise: what they share is made once.

    The files of LONG go first: at the end of a run no worker waits for a long test of the other.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in LONG)


def pytest_collection_finish() -> None:
    """Look for garbage less often than by default, and never among the tests: tracing alone makes millions of objects,
    and took an eighth longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _stamps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Verified bundles are remembered in a folder of this test run, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMMOE_STAMPS", str(tmp_path_factory.mktemp("stamps")))
        yield


@pytest.fixture(scope="session")
def trimmed_golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy in tests/golden under the file names of the full set."""
    return unpack_golden(TRIMMED, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The golden directory: $FASTMMOE_GOLDEN, else the trimmed copy.

    All have the same file names; the trimmed copy has fewer arrays (tests/golden/README.md).
    """
    named = os.environ.get("FASTMMOE_GOLDEN")
    path = Path(named).resolve() if named else TRIMMED
    if not (path / "fastmmoe" / "prune_cases.npz").is_file():
        raise FileNotFoundError(f"golden directory {path} has no fastmmoe/prune_cases.npz: correct FASTMMOE_GOLDEN")
    unpacked: Path = request.getfixturevalue("trimmed_golden") if path == TRIMMED else path
    return unpacked


@pytest.fixture(scope="session")
def golden_array(golden: Path) -> GoldenArray:
    """Function (file, name) -> array: load_array on the golden directory."""
    return partial(load_array, golden)


@pytest.fixture(scope="session")
def golden_last_logits(golden: Path) -> Callable[[str], Array]:
    """Function file -> logits [B, V]: load_last_logits on the golden directory."""
    return partial(load_last_logits, golden)


@pytest.fixture
def assert_close(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Function (quantity, ours, theirs, layers): equal within rounding_of; says what share of it was used."""
    used: dict[str, float] = {}

    def check(quantity: str, ours: Any, theirs: Any, layers: int) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        rtol, atol = rounding_of(quantity, theirs, layers)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=quantity)
        share = float(np.max(np.abs(ours - theirs) / (atol + rtol * np.abs(theirs)), initial=0))
        if share > used.get(quantity, -1):
            used[quantity] = share
            record_property(f"rounding of {quantity}", f"{share:.2f}")

    return check


@pytest.fixture(scope="session")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function name -> complete checkpoint directory, one for the whole session: read it, do not change it."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.is_dir() else write_checkpoint(golden, name, directory)

    return get


@pytest.fixture(scope="session")
def wide_checkpoint(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Function name -> a golden checkpoint with experts of WIDE, one for the whole session: do not change it."""
    root = tmp_path_factory.mktemp("wide")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.is_dir() else write_wide_checkpoint(checkpoint(name), directory)

    return get


@pytest.fixture
def own_checkpoint(golden: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Function name -> complete checkpoint directory of this test alone, which may change it."""
    return lambda name: write_checkpoint(golden, name, tmp_path / name)


@pytest.fixture
def fake_plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Function (version=, architecture=) -> file that says this of itself as the TensorRT plugin does, and no more.

    It takes the built library's place for the rest of the test.
    """

    def write(version: str = __version__, architecture: str = "aarch64") -> Path:
        path = tmp_path_factory.mktemp("plugin") / "libfastmmoe_trt.so"
        machine = {"x86_64": 62, "aarch64": 183}[architecture]
        header = b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + bytes(44)
        path.write_bytes(header + b"FASTMMOE_TRT_VERSION=" + version.encode() + b"\0")
        monkeypatch.setenv("FASTMMOE_TRT_LIBRARY", str(path))
        return path

    return write


@pytest.fixture
def double() -> Iterator[Double]:
    """The host double of CUDA and TensorRT in the place of the packages, in this process; see `Double`."""
    with installed() as found:
        yield found
