# SPDX-License-Identifier: Apache-2.0
"""What the user of an export can mend: exit code 2, one line, no output. Failed checks give 1, interrupts 130.

Nothing is left of them.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastmmoe.exporter.cli import main as export_main
from fastmmoe.exporter.weight_stream import WeightStream
from fastmmoe.runtime.types import Array
from tests.support.onnx_graphs import without_metadata

Tensors = dict[str, Array]
Refusal = Callable[..., str]

SMALL = "dsvl2-small"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "language.model.layers.1.mlp.experts.3.down_proj.weight"
INTERRUPT_SECONDS = 120
LOST_INTERRUPT = """
import os, signal, sys, time
from fastmmoe.runtime.cli.command import run_command

class Trap:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

def command():
    Trap()
    time.sleep(30)
    return 0

sys.exit(run_command("trap", command))
"""


@pytest.fixture
def limited_files() -> Iterator[Callable[[int], None]]:
    """Function limit -> None: files of this process have so many bytes at most, to the end of the test."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def edit_tensors(directory: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def edit_config(directory: Path, **language: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["language_config"] |= language
    (directory / "config.json").write_text(json.dumps(config))


def split_in_shards(directory: Path) -> list[Path]:
    """Replace the single file by two shards and their index."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    shards = [directory / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, part in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard.name)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return shards


def truncate_shard(directory: Path) -> None:
    shard = split_in_shards(directory)[1]
    shard.write_bytes(shard.read_bytes()[:-1000])


def point_outside(directory: Path) -> None:
    split_in_shards(directory)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"][EXPERT] = "../model-00001-of-00002.safetensors"
    (directory / INDEX).write_text(json.dumps(index))


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "expert deleted": (
        lambda d: edit_tensors(d, lambda t: t.pop(EXPERT)),
        ("1 tensor missing: ", EXPERT),
    ),
    "tensor too many": (
        lambda d: edit_tensors(d, lambda t: t.update({"language.model.extra": np.zeros(3, np.float32)})),
        ("1 tensor unexpected: language.model.extra",),
    ),
    "wrong shape": (
        lambda d: edit_tensors(d, lambda t: t.update({EXPERT: np.zeros((64, 39), np.float32)})),
        (EXPERT, "is [64, 39], expected [64, 64]"),
    ),
    "not a number": (
        lambda d: edit_tensors(d, lambda t: t.update({EXPERT: np.full_like(t[EXPERT], np.nan)})),
        (EXPERT, "[64, 64] has 4096 values like nan at [0, 0]: expected finite numbers"),
    ),
    "quantised": (
        lambda d: edit_tensors(d, lambda t: t.update({f"{EXPERT}_scale_inv": np.ones((1, 1), np.float32)})),
        (f"1 tensor unexpected: {EXPERT}_scale_inv", "FP8 weights with block scales: "),
    ),
    "truncated shard": (truncate_shard, ("model-00002-of-00002.safetensors", "damaged or incomplete")),
    "topk_method": (
        lambda d: edit_config(d, topk_method="noaux_tc2"),
        ("topk_method", "'noaux_tc2'", "supported: 'greedy', 'group_limited_greedy', 'noaux_tc'"),
    ),
    "index path": (point_outside, (INDEX, "'../model-00001-of-00002.safetensors'")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint(damage: str, own_small_dir: Path, tmp_path: Path, refusal: Refusal) -> None:
    spoil, words = DAMAGE[damage]
    spoil(own_small_dir)
    line = refusal(export_main, [str(own_small_dir), str(tmp_path / "out"), "--prune-layers", "1,2"])
    assert all(word in line for word in words), line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere", ("nowhere: no such directory; give the directory of a checkpoint",)),
        ("deepseek-ai/deepseek-vl2-tiny", ("download it first", "deepseek-ai/deepseek-vl2-tiny")),
    ],
)
def test_model_that_is_not_there(model: str, words: tuple[str, ...], tmp_path: Path, refusal: Refusal) -> None:
    line = refusal(export_main, [model, str(tmp_path / "out")])
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prune-layers", "1,3"), "--prune-layers 1,3: the model has layers 0 to 2"),
        (("--prune-layers=-1,2",), "--prune-layers -1,2: the model has layers 0 to 2"),
        (("--prune-layers", "1,1"), "expected ascending layers without repetition"),
        (("--prune-layers", "2,1"), "expected ascending layers without repetition"),
        (("--prune-layers", "0,1"), "layer 0 has no MoE block with full attention; possible for fastmmoe are 1,2"),
        (("--prune-layers", "a,b"), "'a,b': expected layer numbers such as 2,5,8"),
        (("--prune-layers", ","), "--prune-layers is empty"),
        ((), "a model of 3 layers has no default prune layers of fastmmoe: give --prune-layers"),
        (("--method", "sparsevlm", "--prune-layers", "1,2"), "layer 2 has no full attention or is the last"),
        (("--method", "none", "--prune-layers", "1"), "--prune-layers: --method none prunes nothing"),
        (("--method", "fast"), "invalid choice: 'fast'"),
        (("--retention", "0"), "retention 0.0: expected a number in (0, 1]"),
        (("--retention", "-1"), "retention -1.0: expected a number in (0, 1]"),
        (("--retention", "nan"), "retention nan: expected a number in (0, 1]"),
        (("--retention", "1.5"), "retention 1.5: expected a number in (0, 1]"),
        (("--expert-factor", "0"), "--expert-factor 0.0: expected a number in (0, 1]"),
        (("--expert-factor", "1.1"), "--expert-factor 1.1: expected a number in (0, 1]"),
        (("--expert-factor", "nan"), "--expert-factor nan: expected a number in (0, 1]"),
        (("--alpha", "1.5"), "--alpha 1.5: expected 0 to 1"),
        (("--window", "0"), "--window 0: expected 1 to 64"),
        (("--merge-ratio", "-0.1"), "--merge-ratio -0.1: expected 0 to 1"),
        (("--atol", "nan"), "--atol nan: expected a positive number"),
        (("--dtype", "int8"), "'int8'"),
        (("--target", "tpu"), "'tpu'"),
    ],
)
def test_bad_export_option(
    flags: tuple[str, ...], words: str, small_dir: Path, tmp_path: Path, refusal: Refusal
) -> None:
    needed = ["--prune-layers", "1,2"] if flags and not any("prune-layers" in flag for flag in flags) else []
    line = refusal(export_main, [str(small_dir), str(tmp_path / "out"), *needed, *flags])
    assert words in line
    assert not list(tmp_path.iterdir())


def test_output_exists(small_dir: Path, tmp_path: Path, refusal: Refusal) -> None:
    other, named_alike, file = tmp_path / "other", tmp_path / "alike", tmp_path / "file"
    for directory, name in ((other, "thesis.txt"), (named_alike, "manifest.json")):
        directory.mkdir()
        (directory / name).write_text("mine")
    file.write_text("mine")
    for out in (other, named_alike, file):
        for flags in ([], ["--overwrite"]):
            assert "exists and is not a bundle" in refusal(export_main, [str(small_dir), str(out), *flags])
    assert [path.read_text() for path in (other / "thesis.txt", named_alike / "manifest.json", file)] == ["mine"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alike", "file", "other"]


def test_disk_without_room(small_dir: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=123_000))
    line = refusal(export_main, [str(small_dir), str(tmp_path / "out"), "--prune-layers", "1,2"])
    assert re.search(r"out: the export takes at least [1-9]\.[0-9] MB, and its disk has 0\.1 MB left: free some", line)
    assert not list(tmp_path.iterdir())


def test_file_that_cannot_be_written(
    small_dir: Path, tmp_path: Path, refusal: Refusal, limited_files: Callable[[int], None]
) -> None:
    # NumPy, which writes the weights, says "10240 requested and 7168 written" alone.
    limited_files(10_000)
    line = refusal(export_main, [str(small_dir), str(tmp_path / "out"), "--prune-layers", "1,2"])
    assert re.search(
        r"out/vision\.onnx with vision\.data: cannot be written: it takes 0\.[1-9] MB, and files may", line
    )
    assert not list(tmp_path.iterdir())


def test_symlinked_shards(own_small_dir: Path, bundle: Callable[..., Path], tmp_path: Path) -> None:
    for i, shard in enumerate(split_in_shards(own_small_dir)):
        target = tmp_path / f"blob-{i}"
        shutil.move(shard, target)
        shard.symlink_to(target)
    out = tmp_path / "out"
    assert export_main([str(own_small_dir), str(out), "--prune-layers", "1,2"]) == 0
    for path in bundle(SMALL).iterdir():
        # Graphs and manifest name the model, after its directory.
        if path.suffix == ".onnx":
            assert without_metadata((out / path.name).read_bytes()) == without_metadata(path.read_bytes()), path.name
        elif path.name != "manifest.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_failed_check(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The file gets the values of another layer.
    write = WeightStream.write

    def spoiled(stream: WeightStream, name: str, order: Any, target: int, at: int, report: Any) -> None:
        wrong = name == "layers.2.mlp.experts.down"
        write(stream, name.replace(".2.", ".1.") if wrong else name, order, target, at, report)

    monkeypatch.setattr(WeightStream, "write", spoiled)
    assert export_main([str(small_dir), str(tmp_path / "out"), "--prune-layers", "1,2"]) == 1
    output = capsys.readouterr()
    assert re.search(r"^\[✓\] \d+ experts in 2 MoE layers, all in the graph$", output.out, re.MULTILINE)
    (line,) = output.err.splitlines()
    assert line.startswith(
        "fastmmoe-export: check failed: language_model.layers.2.mlp.experts.down: other values are stored than the "
        "checkpoint has, near row 0: "
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGINT, "tracing each kind"), (signal.SIGTERM, "comparing the written weights")]
)
def test_interrupted_export(
    number: signal.Signals, after: str, model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    program = str(Path(sys.executable).with_name("fastmmoe-export"))
    command = [program, str(model_dir("dsvl2-mha")), str(tmp_path / "out"), "--prune-layers", "1,2,3"]
    # A test run in the background ignores SIGINT, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith(after) for line in lines), process.stderr.read()
            assert [path.name[:5] for path in tmp_path.iterdir()] == [".out."]
            process.send_signal(number)
            assert process.wait(timeout=INTERRUPT_SECONDS) == 130
            assert process.stderr.read().splitlines() == ["fastmmoe-export: interrupted; nothing was written"]
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())


def test_interrupt_in_a_destructor_is_not_lost() -> None:
    # Python prints and drops what is raised there; tracing a model runs thousands of such callbacks.
    command = [sys.executable, "-c", LOST_INTERRUPT]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INTERRUPT_SECONDS)
    assert result.stderr.splitlines() == ["trap: interrupted; nothing was written"]
    assert result.returncode == 130
