# SPDX-License-Identifier: Apache-2.0
"""Bundles of the golden checkpoints, each exported once a session, and the commands run on them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastmmoe.exporter.cli import main as export_main
from fastmmoe.plugins import tensorrt_library_path
from fastmmoe.runtime.cli.command import SIGNALS
from fastmmoe.runtime.cli.main import main as run_main
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.double import Double, installed
from tests.support.engine_bundles import write_engine_bundle

Tensors = dict[str, Array]

# Of the golden fastmmoe_*.npz; an original checkpoint has those of its Hugging Face twin.
PRUNE_LAYERS = {"dsvl2-mha": "1,2,3", "dsvl2-mla": "1,2,3", "internvl-qwen3moe": "1,2,3", "internvl-gptoss": "1,3,5"}

# dsvl2-mha with fewer layers, for what does not depend on the depth. Tracing takes a time proportional to it. Its
# experts are wide, as engine targets want them.
SMALL = "dsvl2-small"
SMALL_LAYERS = 3
SMALL_FLAGS = ("--prune-layers", "1,2")


@pytest.hookimpl(tryfirst=True)  # before every file becomes a group
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One worker runs all of this folder that shares bundles, so that they are exported once."""
    if config.getoption("engines"):
        items[:] = [item for item in items if item.get_closest_marker("engines")]
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and item.path.name != "test_engine_matrix.py":
            item.add_marker(pytest.mark.xdist_group("end_to_end"))


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> Iterator[None]:
    """The commands take over signals for good, as a process of their own may."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write_small_checkpoint(source: Path, directory: Path) -> Path:
    """Copy a dsvl2 checkpoint without the decoder layers from SMALL_LAYERS on and with one vision block."""
    from safetensors.numpy import load_file, save_file

    def is_kept(name: str) -> bool:
        parts = name.split(".")
        limit = {"language": SMALL_LAYERS, "vision": 1}.get(parts[0])
        numbers = [int(p) for p in parts[:4] if p.isdecimal()]
        return limit is None or ("blocks" not in parts and "layers" not in parts) or numbers[0] < limit

    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    config["language_config"]["num_hidden_layers"] = SMALL_LAYERS
    config["vision_config"]["layers"] = 1
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if is_kept(name)}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def model_dir(
    checkpoint: Callable[[str], Path],
    wide_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Function name -> checkpoint directory of a golden checkpoint or SMALL, shared: do not change it."""
    small = tmp_path_factory.mktemp("small") / SMALL

    def get(name: str) -> Path:
        if name != SMALL:
            return checkpoint(name)
        return small if small.is_dir() else write_small_checkpoint(wide_checkpoint("dsvl2-mha"), small)

    return get


@pytest.fixture(scope="session")
def small_dir(model_dir: Callable[[str], Path]) -> Path:
    """The small checkpoint, shared: do not change it."""
    return model_dir(SMALL)


@pytest.fixture
def own_small_dir(small_dir: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that this test may change."""
    return Path(shutil.copytree(small_dir, tmp_path / "model"))


@pytest.fixture(scope="session")
def engines_of(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Path], Path] | None]:
    """Function bundle -> the same with engines of the double, which is there as long; None without --engines."""
    if not pytestconfig.getoption("engines"):
        yield None
        return
    root, made = tmp_path_factory.mktemp("engines"), {}

    with installed() as double:
        double.modules()

        def get(directory: Path) -> Path:
            if directory not in made:
                made[directory] = write_engine_bundle(directory, root / directory.name, double)
            return made[directory]

        yield get


@pytest.fixture(scope="session")
def bundle(
    model_dir: Callable[[str], Path],
    engines_of: Callable[[Path], Path] | None,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Function (checkpoint, *flags) -> bundle, exported by the command at the first call. Do not change it.

    Without flags: the golden prune layers. A checkpoint is one of the golden ones or SMALL. With --bundles it may be
    there from before, with --engines it has engines of the double.
    """
    kept = pytestconfig.getoption("bundles")
    root = tmp_path_factory.mktemp("bundles") if kept is None else pytestconfig.rootpath / kept
    root.mkdir(parents=True, exist_ok=True)
    made: dict[tuple[str, ...], Path] = {}

    def get(name: str, *flags: str) -> Path:
        if not flags:
            given = PRUNE_LAYERS.get(name.removesuffix("-original"))
            flags = SMALL_FLAGS if given is None else ("--prune-layers", given)
        key = (name, *flags)
        if key not in made:
            out = root / re.sub(r"[^\w.-]+", "_", "-".join(key))
            if not out.is_dir():
                assert export_main([str(model_dir(name)), str(out), *flags]) == 0
            made[key] = out
        return made[key] if engines_of is None else engines_of(made[key])

    return get


@pytest.fixture(scope="session")
def comparison_bundle(bundle: Callable[..., Path]) -> Callable[[str], Path]:
    """Function checkpoint -> its bundle with every method, fastmmoe and random at the golden prune layers."""
    return lambda name: bundle(name, "--method", "all", "--prune-layers", PRUNE_LAYERS[name])


@pytest.fixture
def own_bundle(bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the small bundle that this test may change."""
    return Path(shutil.copytree(bundle(SMALL), tmp_path / "bundle"))


@pytest.fixture(scope="session")
def vlm(bundle: Callable[..., Path]) -> Callable[..., VLM]:
    """Function (checkpoint, **options) -> loaded default bundle, one object for the session."""
    loaded: dict[tuple[Any, ...], VLM] = {}

    def get(name: str, **options: Any) -> VLM:
        key = (name, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = VLM(bundle(name), **options)
        return loaded[key]

    return get


@pytest.fixture(scope="session")
def case_tensors(golden: Path) -> Callable[[str, str], Tensors]:
    """Function (checkpoint, case) -> tensors under the official names; "text" has no picture at all."""

    def read(file: str, *names: str) -> Tensors:
        with np.load(golden / file) as arrays:
            return {name: arrays[name] for name in names or arrays.files}

    def get(name: str, case: str) -> Tensors:
        ids = ("input_ids", "attention_mask")
        if name.startswith("dsvl2-"):
            return read(f"dsvl2-inputs/inputs_{case}.npz", *(ids if case == "text" else ()))
        file = f"{name.removesuffix('-original')}/outputs_{case}.npz"
        if case == "single":
            return read(file, *ids) | read("internvl-inputs/pixels_img0_max6.npz", "pixel_values")
        return read(file, *ids, *(("pixel_values",) if case == "batch2" else ()))

    return get


@pytest.fixture
def run_tensors(tmp_path: Path) -> Callable[..., Tensors]:
    """Function (bundle, tensors, *flags) -> arrays that `fastmmoe run BUNDLE --inputs --dump` wrote."""

    def run(directory: Path, tensors: Tensors, *flags: str) -> Tensors:
        given, dump = tmp_path / "in.npz", tmp_path / "out.npz"
        np.savez(given, **tensors)  # type: ignore[arg-type]
        assert run_main(["run", str(directory), "--inputs", str(given), "--dump", str(dump), *flags]) == 0
        with np.load(dump) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return run


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Function (main, arguments) -> the one line a command refused them with, its prefix and exit code checked."""

    def run(main: Callable[[list[str]], int], arguments: list[str]) -> str:
        capfd.readouterr()
        try:
            code: Any = main(arguments)
        except SystemExit as end:  # argparse
            code = end.code
        lines = capfd.readouterr().err.splitlines()
        assert code == 2, lines
        assert len(lines) == 1, lines
        prefix = "fastmmoe-export: error: " if main is export_main else "fastmmoe: error: "
        assert lines[0].startswith(prefix), lines
        return lines[0]

    return run


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model for the CPU. Do not change it."""
    cpu = tmp_path_factory.mktemp("demo-cpu") / "cpu"
    assert export_main(["demo", str(cpu)]) == 0
    return cpu


@pytest.fixture(scope="session")
def demo_bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The built-in model for the CPU, and with engines of the double for up to three sequences. Do not change them."""
    library = tensorrt_library_path("x86_64")
    if not library.is_file():
        pytest.skip(f"needs {library}: make plugins")
    rtx = tmp_path_factory.mktemp("demo") / "rtx"
    environment = Double().environment()
    for command in (
        ["fastmmoe.exporter.cli", "demo", str(rtx), "--target", "rtx"],
        ["fastmmoe.runtime.cli.main", "build", str(rtx), "--max-batch", "3", "--max-tokens", "900"],
    ):
        subprocess.run([sys.executable, "-m", *command], env=environment, check=True, capture_output=True, timeout=900)
    return demo_bundle, rtx


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Scenes of one figure each."""
    root, paths = tmp_path_factory.mktemp("pictures"), []
    for name, shape in (("red", "rectangle"), ("blue", "ellipse"), ("green", "rectangle")):
        image = Image.new("RGB", (96, 96), (120, 120, 120))
        getattr(ImageDraw.Draw(image), shape)((10, 30, 40, 60), fill=name)
        image.save(root / f"{name}.png")
        paths.append(str(root / f"{name}.png"))
    return paths
