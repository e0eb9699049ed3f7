# SPDX-License-Identifier: Apache-2.0
"""Reading manifests: every leaf with hostile values, ranges, and files that are not those of the manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmmoe import __version__
from fastmmoe.runtime.bundle.manifest import FORMAT, LARGEST_MANIFEST, MANIFEST, parse_manifest, read_manifest
from fastmmoe.runtime.errors import BundleMismatch
from tests.support.cpu_seconds import bounded_seconds
from tests.support.manifests import manifest_document, toy_manifest

FAMILIES = ("deepseek_vl2", "internvl3_5")
MARK = "@@"
DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "0": "0",
    "-1": "-1",
    "2^31": str(2**31),
    "1e400": "1e400",
    "NaN": "NaN",
    "list": "[1, 2]",
    "deep": DEEP,
    "string": '"x"',
    "null": "null",
    "many digits": "9" * 5000,
}
FREE_TEXT = {"sha256", "fastmmoe_version", "model", "checkpoint_identity", "target", "image_token", "image_start_token"}
FREE_TEXT |= {"image_end_token", "special_tokens.0"}
LEGAL = {
    # Leaf -> values it may have beside the one that it has.
    **{name: {"string"} for name in FREE_TEXT},
    **{f"{name}_token_id": {"0", "null"} for name in ("bos", "eos", "pad")},
    **{f"{name}.{i}": {"0"} for name in ("image_mean", "pad_color") for i in range(3)},
    **{f"image_mean.{i}": {"0", "-1", "2^31"} for i in range(3)},
    **{f"image_std.{i}": {"2^31"} for i in range(3)},
    **{name: {"0"} for name in ("image_token_id", "alpha", "merge_ratio", "stop_token_ids.0")},
    **{name: {"0"} for name in ("shared_intermediate_size", "dense_intermediate_size", "rope_dim", "kv_lora_rank")},
    "group_size": {"0"},
    "plugin": {"null"},
    "sliding_window": {"null"},
    "bytes": {"0", "2^31"},
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything that is no object and no filled list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = False
    for key, child in items:
        found = True
        yield from leaves(child, (*path, key))
    if not found:
        yield path


def with_leaf(document: dict[str, Any], path: tuple[Any, ...], text: str) -> bytes:
    """The document with this JSON text at a path."""
    place = document
    for key in path[:-1]:
        place = place[key]
    old, place[path[-1]] = place[path[-1]], MARK
    data = json.dumps(document).replace(f'"{MARK}"', text)
    place[path[-1]] = old
    return data.encode()


def refusal(data: bytes) -> str:
    """The line that a manifest is refused with, "" where it is accepted."""
    try:
        parse_manifest(data, Path("manifest.json"))
    except BundleMismatch as error:
        line = str(error)
        assert "\n" not in line and len(line) < 400, line
        assert line.startswith("manifest.json: "), line
        return line
    return ""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_manifest_is_read(family: str) -> None:
    assert refusal(json.dumps(manifest_document(family)).encode()) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_with_hostile_values(family: str) -> None:
    changed, wrong = manifest_document(family), []
    for path in leaves(changed):
        name = ".".join(str(key) for key in path[-2:]) if isinstance(path[-1], int) else path[-1]
        for value, text in HOSTILE.items():
            with bounded_seconds(1):
                line = refusal(with_leaf(changed, path, text))
            if not line and value not in LEGAL.get(name, set()):
                wrong.append((path, value))
    assert not wrong


OUT_OF_RANGE: dict[str, tuple[str, Any, str]] = {
    "deviation 0 in float32": ("processor.image_std", [0.5, 1e-46, 0.5], "Expected `float` >= 1e-06"),
    "line break in a name": ("dtype", "fp32\n", "Invalid enum value 'fp32\\n'"),
    "line break in a type": ("activation_dtype", "float32\n", "Invalid enum value 'float32\\n'"),
    "unknown caches": ("cache_dtype", "int8", "Invalid enum value 'int8' at `$.cache_dtype`, found"),
    "line break in a hash": (
        "files.vision",
        {"bytes": 1, "sha256": "0" * 64 + "\n"},
        "Expected `str` matching regex",
    ),
    "layers": ("language_model.moe_layers", [1] * 1025, "Expected `array` of length <= 1024"),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_out_of_range(name: str) -> None:
    path, value, words = OUT_OF_RANGE[name]
    changed = manifest_document("deepseek_vl2")
    *parents, key = path.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[key] = value
    assert words in refusal(json.dumps(changed).encode())


def test_a_contradiction_is_refused() -> None:
    changed = manifest_document("deepseek_vl2")
    changed["language_model"]["top_k"] = 17
    words = "manifest.json: language_model.top_k is 17: expected at most num_experts, 16; export again"
    assert refusal(json.dumps(changed).encode()) == words


def test_a_number_out_of_range_is_named_with_its_value() -> None:
    changed = manifest_document("deepseek_vl2")
    changed["language_model"]["heads"] = 0
    line = refusal(json.dumps(changed).encode())
    assert "Expected `int` >= 1 at `$.language_model.heads`, found 0" in line


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace('"dtype"', '"portable": false, "dtype"', 1), "key 'portable' is given twice"),
        (lambda text: text.replace('"bytes"', '"bytes": 1, "bytes"', 1), "key 'bytes' is given twice"),
        (lambda text: text.replace('"model"', '"files": {}, "model"', 1), "key 'files' is given twice"),
        (lambda text: text + "{}", "Extra data"),
        (lambda text: text[:-20], "no JSON from line"),
        (lambda text: "\N{BYTE ORDER MARK}" + text, "no JSON from line 1"),
        (lambda text: "", "no JSON from line 1"),
        (lambda text: "[" + text + "]", "Expected `object`, got `array`"),
    ],
)
def test_ambiguous_text(spoil: Callable[[str], str], words: str) -> None:
    assert words in refusal(spoil(json.dumps(manifest_document("deepseek_vl2"))).encode())


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_other_formats_are_told_apart_from_damage(other: int) -> None:
    """Format 3 did not say how linear layers are stored."""
    assert FORMAT == 4
    changed = manifest_document("deepseek_vl2") | {"format": other, "extra": 1}
    line = refusal(json.dumps(changed).encode())
    assert line == f"manifest.json: bundle format {other}, fastmmoe {__version__} reads format 4; export again"


def write_config(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").touch()


NO_BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda p: None, "no such directory; give a bundle's, or make one with fastmmoe-export MODEL '{path}'"),
    "a file": (lambda p: p.touch(), "not a directory; give that of a bundle"),
    "a checkpoint": (
        write_config,
        "a checkpoint, no manifest.json: not a bundle; make one with fastmmoe-export '{path}' OUT",
    ),
    "a folder": (Path.mkdir, "no manifest.json: not a bundle; give one, or make it with fastmmoe-export MODEL OUT"),
}


@pytest.mark.parametrize("kind", NO_BUNDLES)
def test_what_is_no_bundle_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    make, words = NO_BUNDLES[kind]
    path = tmp_path / "my models"
    make(path)
    with pytest.raises(BundleMismatch) as refusal:
        read_manifest(path)
    assert str(refusal.value) == f"{path}: {words.format(path=path)}"


def test_a_huge_manifest_is_not_read(toy_bundle: Path) -> None:
    with (toy_bundle / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleMismatch, match=f"expected at most {LARGEST_MANIFEST}"):
        read_manifest(toy_bundle)


def test_files_that_the_manifest_does_not_name_are_refused(toy_bundle: Path) -> None:
    read_manifest(toy_bundle)
    for name in ("engines.json", "vision.engine"):
        (toy_bundle / name).touch()
    (toy_bundle / ".engines.fastmmoe-unfinished").mkdir()
    read_manifest(toy_bundle)
    for name in ("extra.data", ".hidden", "language_model.data"):
        (toy_bundle / name).touch()
        with pytest.raises(BundleMismatch, match=f"{name}: not in manifest.json"):
            read_manifest(toy_bundle)
        (toy_bundle / name).unlink()


def test_what_is_no_file_of_the_bundle_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    path = toy_bundle / "vision.onnx"
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: missing"):
        read_manifest(toy_bundle)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: a symbolic link to .*elsewhere, outside the bundle"):
        read_manifest(toy_bundle)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: no regular file"):
        read_manifest(toy_bundle)


@pytest.mark.parametrize(
    ("target", "is_tiled"),
    [
        ("cpu", True),
        ("rtx", False),
        ("jetson-orin", False),
        ("jetson-agx-orin@jp6.2", False),
        ("of another version", True),
    ],
)
def test_where_linear_layers_stand_in_tiles(target: str, is_tiled: bool) -> None:
    assert toy_manifest("internvl3_5", target=target).has_tiled_linears == is_tiled
