# SPDX-License-Identifier: Apache-2.0
"""What the user of a bundle can mend: exit code 2, one line, no output."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.cli.main import main as run_main
from fastmmoe.runtime.types import Array

Tensors = dict[str, Array]
Refusal = Callable[..., str]

SMALL = "dsvl2-small"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def edit_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def files_of(directory: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((directory / "manifest.json").read_text())["files"]
    return files


BUNDLE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "legal edit": (lambda d: edit_manifest(d, model="other"), "manifest.json: damaged or edited: SHA-256"),
    "no hash": (lambda d: edit_manifest(d, sha256=""), "manifest.json: damaged or edited: SHA-256"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "no manifest.json: not a bundle"),
    "file missing": (lambda d: (d / "vision.data").unlink(), "vision.data: missing"),
    "truncated file": (lambda d: truncate(d / "language_model.data"), "copy the bundle or export again"),
    "damaged graph": (
        lambda d: (d / "vision.onnx").write_bytes(b"\xff" * (d / "vision.onnx").stat().st_size),
        "vision.onnx: damaged: SHA-256",
    ),
    "other format": (lambda d: edit_manifest(d, format=9), "bundle format 9"),
    "unknown field": (lambda d: edit_manifest(d, extra=1), "unknown field `extra`"),
    "wrong type": (lambda d: edit_manifest(d, portable="yes"), "Expected `bool`, got `str`"),
    "truncated manifest": (lambda d: truncate(d / "manifest.json"), "damaged, or written by another version"),
    "empty manifest": (lambda d: (d / "manifest.json").write_bytes(b""), "damaged, or written by another version"),
    "not UTF-8": (
        lambda d: (d / "manifest.json").write_bytes((d / "manifest.json").read_bytes().replace(b"dsvl2", b"\xff")),
        "damaged, or written by another version",
    ),
    "path in manifest": (
        lambda d: edit_manifest(d, files=files_of(d) | {"../x": {"bytes": 1, "sha256": "0" * 64}}),
        "file name '../x': expected a bare name",
    ),
    "damaged tokenizer": (
        lambda d: (d / "tokenizer.json").write_bytes(b"x" * (d / "tokenizer.json").stat().st_size),
        "tokenizer.json: damaged: SHA-256",
    ),
}


@pytest.mark.parametrize("damage", BUNDLE_DAMAGE)
def test_damaged_bundle(damage: str, own_bundle: Path, refusal: Refusal) -> None:
    spoil, words = BUNDLE_DAMAGE[damage]
    spoil(own_bundle)
    assert words in refusal(run_main, ["run", str(own_bundle), "--prompt", "a"])


def test_not_a_bundle(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "file").write_text("a")
    found = {"": "not a bundle", "nowhere": "no such directory", "file": "not a directory"}
    for name, words in found.items():
        assert words in refusal(run_main, ["run", str(tmp_path / name), "--prompt", "a"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "give --prompt (and --image), or --inputs and --dump"),
        (("--prompt", "a", "--retention", "0.5", "--pruning-rate", "0.5"), "not allowed with argument --retention"),
        (("--prompt", "a", "--retention", "0"), "retention 0.0: expected a number in (0, 1]"),
        (("--prompt", "a", "--retention", "nan"), "retention nan: expected a number in (0, 1]"),
        (("--prompt", "a", "--retention", "1.5"), "retention 1.5: expected a number in (0, 1]"),
        (("--prompt", "a", "--pruning-rate", "1"), "pruning_rate 1.0: expected a number in [0, 1)"),
        (("--prompt", "a", "--visual-top-k", "0"), "visual_top_k 0: expected 1 to the model's experts per token"),
        (("--prompt", "a", "--visual-top-k", "5"), "visual_top_k 5: expected 1 to 4"),
        (("--prompt", "a", "--visual-top-k", "x"), "'x'"),
        (("--prompt", "a", "--alpha", "2"), "alpha 2.0: expected a number in [0, 1]"),
        (("--prompt", "a", "--max-new-tokens", "0"), "max_new_tokens 0: expected at least 1"),
        (("--prompt", "a", "--threads", "-1"), "--threads -1: expected 0 or more"),
        (("--prompt", "a", "--threads", "999999"), "--threads 999999: expected at most"),
        (("--prompt", "a", "--inputs", "in.npz", "--dump", "out.npz"), "--inputs takes the place of"),
        (("--inputs", "in.npz"), "--inputs and --dump go together"),
        (("--prompt", "a", "--nonsense"), "--nonsense"),
    ],
)
def test_bad_run_option(flags: tuple[str, ...], words: str, bundle: Callable[..., Path], refusal: Refusal) -> None:
    assert words in refusal(run_main, ["run", str(bundle(SMALL)), *flags])


def test_bad_picture(bundle: Callable[..., Path], tmp_path: Path, refusal: Refusal) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    start = ["run", str(bundle(SMALL)), "--prompt", "a", "--image"]
    assert "No such file or directory" in refusal(run_main, [*start, str(tmp_path / "none.png")])
    assert "give a readable PNG, JPEG or other picture file" in refusal(run_main, [*start, str(text)])
    assert str(tmp_path) in refusal(run_main, [*start, str(tmp_path)])


def write_inputs(directory: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no input tensors, with words of their refusal."""
    ids = np.array([[3, 4]])
    arrays: dict[str, tuple[Tensors, str]] = {
        "names": ({"ids": ids}, "missing input_ids; unknown ids"),
        "one name too many": ({"input_ids": ids, "pixel_values": ids}, "unknown pixel_values"),
        "pictures in part": ({"input_ids": ids, "images": ids}, "missing images_seq_mask, images_spatial_crop"),
        "objects": ({"input_ids": np.array([[1, "a"]], object)}, "expected an .npz file of arrays of numbers"),
        "float ids": ({"input_ids": ids.astype(np.float32)}, "input_ids is float32 [1, 2]: expected integer"),
        "one dimension": ({"input_ids": ids[0]}, "input_ids is int64 [2]: expected integer of shape [any, any]"),
        "unknown id": ({"input_ids": ids + 320}, "ids from 323 to 324, expected 0 to 319"),
        "no rows": ({"input_ids": ids[:0]}, "input_ids has no rows"),
        "no tokens": ({"input_ids": ids[:, :0]}, "at least one token"),
        "right padding": ({"input_ids": ids, "attention_mask": np.array([[1, 0]])}, "expected left padding"),
    }
    cases = {}
    for name, (tensors, words) in arrays.items():
        np.savez(directory / f"{name}.npz", **tensors)  # type: ignore[arg-type]
        cases[name] = (directory / f"{name}.npz", words)
    whole = (directory / "names.npz").read_bytes()
    expected = "expected an .npz file of arrays of numbers"
    contents = {"text": b"hello", "empty": b"", "truncated": whole[:-30], "damaged": whole[:150] + b"?" + whole[151:]}
    for name, content in contents.items():
        (directory / f"{name}.npz").write_bytes(content)
        cases[name] = (directory / f"{name}.npz", expected)
    np.save(directory / "array.npy", ids)
    with zipfile.ZipFile(directory / "zip.npz", "w") as archive:
        archive.writestr("input_ids", "hello")
    cases |= {name: (directory / name, expected) for name in ("array.npy", "zip.npz")}
    return cases | {
        "missing": (directory / "none.npz", "none.npz: No such file"),
        "directory": (directory, "directory"),
    }


def test_bad_input_tensors(bundle: Callable[..., Path], tmp_path: Path, refusal: Refusal) -> None:
    given = tmp_path / "given"
    given.mkdir()
    cases = write_inputs(given)
    assert len(cases) == 18
    dump = tmp_path / "out.npz"
    for name, (path, words) in cases.items():
        line = refusal(run_main, ["run", str(bundle(SMALL)), "--inputs", str(path), "--dump", str(dump)])
        assert words in line, (name, line)
        assert [entry.name for entry in tmp_path.iterdir()] == ["given"], name
