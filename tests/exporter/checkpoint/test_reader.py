# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: sharded or not, lazily, and one clear line for everything that is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.checkpoint.reader import Checkpoint, WeightRule, account, build
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import refusal

INDEX = "model.safetensors.index.json"
TENSORS = {
    "norm.weight": torch.arange(4.0),
    "layers.0.weight": torch.arange(12.0).view(3, 4).half(),
    "layers.1.weight": torch.arange(12.0, 24.0).view(3, 4).bfloat16(),
}
SHARDS = {"a.safetensors": ["norm.weight"], "b.safetensors": ["layers.0.weight", "layers.1.weight"]}


def write_single(directory: Path, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "test"}')
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def write_sharded(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "test"}')
    for file, names in SHARDS.items():
        save_file({name: TENSORS[name] for name in names}, directory / file)
    write_index(directory, {name: file for file, names in SHARDS.items() for name in names})
    return directory


def write_raw(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def rules_of(tensors: dict[str, torch.Tensor]) -> dict[str, WeightRule]:
    return {f"ours.{name}": WeightRule(((name, tuple(tensor.shape)),)) for name, tensor in tensors.items()}


# ---- reading


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_every_tensor_is_read_as_stored(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    checkpoint = Checkpoint(write(tmp_path))
    assert checkpoint.path == tmp_path
    assert checkpoint.config == {"model_type": "test"}
    assert set(checkpoint.tensors) == set(TENSORS)
    assert {n: i.dtype for n, i in checkpoint.tensors.items()} == dict(
        zip(TENSORS, ("F32", "F16", "BF16"), strict=True)
    )
    for name, expected in TENSORS.items():
        loaded = checkpoint.load(name)
        assert loaded.dtype == expected.dtype
        assert checkpoint.tensors[name].shape == tuple(expected.shape)
        assert torch.equal(loaded, expected)


def test_golden_checkpoint_equals_the_library(golden: Path) -> None:
    expected = load_file(golden / "dsvl2-mla" / "model.safetensors")
    checkpoint = Checkpoint(golden / "dsvl2-mla")
    assert set(checkpoint.tensors) == set(expected)
    assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in expected.items())


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    blobs = write_sharded(tmp_path / "blobs")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in blobs.iterdir():
        (linked / file.name).symlink_to(file)
    assert torch.equal(Checkpoint(linked).load("norm.weight"), TENSORS["norm.weight"])


def test_files_outside_the_index_are_not_read(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"not one of the shards")
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert set(Checkpoint(tmp_path).tensors) == set(TENSORS)


def test_zero_sized_and_scalar_tensors(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_single(tmp_path, {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}))
    assert checkpoint.load("empty").shape == (0, 3)
    assert checkpoint.load("scalar").item() == 2.5


def test_single_file_is_read_where_shards_say_the_same(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert {info.file.name for info in checkpoint.tensors.values()} == {"model.safetensors"}


def test_index_may_name_the_single_file(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / "a.safetensors").rename(tmp_path / "model.safetensors")
    moved = {"a.safetensors": "model.safetensors", "b.safetensors": "b.safetensors"}
    write_index(tmp_path, {name: moved[file] for file, names in SHARDS.items() for name in names})
    assert set(Checkpoint(tmp_path).tensors) == set(TENSORS)


RSS_SCRIPT = """
import sys
from pathlib import Path
from fastmmoe.exporter.checkpoint.reader import Checkpoint

def file_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) / 1024

checkpoint = Checkpoint(Path(sys.argv[1]))
assert "torch" not in sys.modules, "opening must not import torch"
import safetensors, torch
assert torch.ones(16).sum().item() == 16  # the library's own pages come before
before = file_mib()
assert checkpoint.load("small").sum().item() == 16
assert checkpoint.load("large.1").shape == (64, 1024, 256)
after_small = file_mib()
checkpoint.load("large.0").sum()
print(after_small - before, file_mib() - after_small)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_only_the_pages_of_used_tensors_are_read(tmp_path: Path) -> None:
    """Resident file-backed memory grows with a tensor's values being read, not with opening or loading others."""
    large = {f"large.{i}": torch.ones(64, 1024, 256) for i in range(2)}  # 64 MiB each
    write_single(tmp_path, {"small": torch.ones(16), **large})
    command = [sys.executable, "-c", RSS_SCRIPT, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small_mib, large_mib = map(float, done.stdout.split())
    assert small_mib < 8, done.stdout
    assert 60 < large_mib < 80, done.stdout


def test_identity_tells_layouts_apart(tmp_path: Path) -> None:
    one = Checkpoint(write_single(tmp_path / "one")).identity
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert Checkpoint(write_single(tmp_path / "two")).identity == one
    assert Checkpoint(write_sharded(tmp_path / "sharded")).identity != one
    (tmp_path / "two" / "config.json").write_text('{"model_type": "other"}')
    assert Checkpoint(tmp_path / "two").identity != one
    reshaped = TENSORS | {"layers.0.weight": torch.zeros(4, 3).half()}  # a header and a file of the same size
    assert Checkpoint(write_single(tmp_path / "three", reshaped)).identity != one


# ---- directories, config.json and files that are refused


@pytest.mark.parametrize(
    ("write", "file", "content", "expected"),
    [
        (write_single, "config.json", None, "no config.json in it"),
        (write_single, "model.safetensors", None, f"no weights in it; expected model.safetensors or {INDEX}"),
        (write_single, "model.safetensors", b"version of-the-pointer-format\n", "fetch it with: git lfs pull"),
        (write_single, "model.safetensors", b"\xff" * 16, f"16 bytes, with a header of {2**64 - 1} bytes"),
        (write_sharded, INDEX, None, "2 .safetensors file(s) (a.safetensors), but the index is missing"),
        (write_sharded, INDEX, b"<html>", f"{INDEX}: damaged or incomplete: the file is not valid JSON"),
        (write_sharded, "b.safetensors", None, f"b.safetensors: no such file, though {INDEX} names it"),
    ],
)
def test_missing_or_foreign_file(tmp_path: Path, write: Any, file: str, content: bytes | None, expected: str) -> None:
    path = write(tmp_path) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert expected in refusal(Checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickle_weights_only(tmp_path: Path, name: str) -> None:
    (write_single(tmp_path) / "model.safetensors").rename(tmp_path / name)
    assert re.search(f"pickle weights only \\({name}\\).*: convert them to safetensors;", refusal(Checkpoint, tmp_path))


def test_single_file_contradicts_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file(TENSORS | {"norm.weight": torch.zeros(5)}, tmp_path / "model.safetensors")
    message = refusal(Checkpoint, tmp_path)
    assert "contradict each other: 1 tensor differing: norm.weight; remove the one" in message


@pytest.mark.parametrize("file", ["../a.safetensors", "/a.safetensors", "sub/a", "..", ".", "", "a\\b", None, 3])
def test_index_names_something_else_than_a_bare_file(tmp_path: Path, file: Any) -> None:
    write_index(write_sharded(tmp_path), {"norm.weight": file})
    assert f"tensor 'norm.weight' is in {file!r}, expected the bare name of a file" in refusal(Checkpoint, tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, ["a.safetensors"]])
def test_index_without_weight_map(tmp_path: Path, weight_map: Any) -> None:
    write_index(write_sharded(tmp_path), weight_map)
    assert f"weight_map is {weight_map!r}, expected an object" in refusal(Checkpoint, tmp_path)


def test_listed_tensor_is_not_in_its_shard(tmp_path: Path) -> None:
    full = {name: file for file, names in SHARDS.items() for name in names}
    write_index(
        write_sharded(tmp_path), full | {"layers.1.weight": "a.safetensors", "layers.2.weight": "a.safetensors"}
    )
    assert "2 tensors listed but not in the shard: layers.{1..2}.weight of a.safetensors" in refusal(
        Checkpoint, tmp_path
    )


def test_tensor_in_a_shard_is_not_listed(tmp_path: Path) -> None:
    write_index(write_sharded(tmp_path), {"norm.weight": "a.safetensors", "layers.0.weight": "b.safetensors"})
    assert "1 tensor in a shard but not listed: layers.1.weight of b.safetensors" in refusal(Checkpoint, tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"norm.weight": torch.zeros(4), "layers.0.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    expected = "1 tensor in more than one shard: layers.0.weight in a.safetensors and b.safetensors"
    assert expected in refusal(Checkpoint, tmp_path)


def test_same_name_twice_in_one_file(tmp_path: Path) -> None:
    entry = '"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    write_raw(write_single(tmp_path) / "model.safetensors", f"{{{entry}, {entry}}}".encode(), bytes(4))
    assert "key 'x' is given twice" in refusal(Checkpoint, tmp_path)


@pytest.mark.parametrize(
    "change", [lambda b: b[:1], lambda b: b[:7], lambda b: b[:60], lambda b: b[:-1], lambda b: b + b"x"]
)
def test_truncated_file_or_bytes_too_many(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = write_single(tmp_path) / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    message = refusal(Checkpoint, tmp_path)
    assert message.startswith(f"{path}: damaged or incomplete: ")
    assert message.endswith("download it again")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"{]", "the header is not valid JSON"),
        (["x"], "the header holds a JSON list, expected an object"),
        ({"x": 5}, "header entry 'x' is 5, expected dtype, shape and data_offsets"),
        ({"x": ENTRY | {"dtype": 1}}, "header entry 'x' is"),
        ({"x": ENTRY | {"shape": [-2]}}, "header entry 'x' is"),
        ({"x": ENTRY | {"shape": [True]}}, "header entry 'x' is"),
        ({"x": ENTRY | {"shape": [10**4000, 10**4000]}}, "header entry 'x' is"),
        ({"x": ENTRY | {"data_offsets": [8]}}, "header entry 'x' is"),
        ({"x": ENTRY | {"shape": [3]}}, "tensor 'x' has 8 bytes, expected 12 for F32 [3]"),
        ({"x": ENTRY, "y": ENTRY}, "a tensor's data is at 0 to 8, expected to start at 8"),
        ({"x": ENTRY | {"data_offsets": [8, 16]}}, "a tensor's data is at 8 to 16, expected to start at 0"),
        ({"x": {"dtype": "I8", "shape": [8], "data_offsets": [8, 0]}}, "expected to start at 0"),
    ],
)
def test_damaged_header(tmp_path: Path, header: Any, expected: str) -> None:
    write_raw(write_single(tmp_path) / "model.safetensors", header, bytes(8))
    assert expected in refusal(Checkpoint, tmp_path)


# ---- loading and accounting


def test_load_refuses_unknown_names_and_other_dtypes(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_single(tmp_path, {"position_ids": torch.arange(3)}))
    with pytest.raises(UnsupportedModel, match=r"no tensor 'lm_head\.weight' among its 1 tensors"):
        checkpoint.load("lm_head.weight")
    with pytest.raises(UnsupportedModel, match="tensor 'position_ids' is I64; expected F32, F16, BF16"):
        checkpoint.load("position_ids")


def test_load_says_that_the_file_changed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_single(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors cannot be read any more"):
        checkpoint.load("norm.weight")


def test_build_takes_the_sources_in_order(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_single(tmp_path))
    sources = (("layers.1.weight", (3, 4)), ("layers.0.weight", (3, 4)))
    stacked = build(checkpoint, WeightRule(sources, (2, 3, 4)))
    assert torch.equal(stacked, torch.stack([TENSORS["layers.1.weight"].float(), TENSORS["layers.0.weight"].float()]))
    assert torch.equal(build(checkpoint, WeightRule((("norm.weight", (4,)),))), TENSORS["norm.weight"])


def test_account_accepts_an_exact_fit_and_dropped_tensors(tmp_path: Path) -> None:
    unused = {"vision.attn_pool.q.weight": torch.zeros(2), "vision.attn_pool.ids": torch.arange(2)}
    checkpoint = Checkpoint(write_single(tmp_path, TENSORS | unused))
    rules = rules_of(TENSORS)
    account(checkpoint, rules | {"tied": rules["ours.norm.weight"]}, ("vision.attn_pool.*", "pattern.that.fits.none"))
    with pytest.raises(UnsupportedModel, match=re.escape("2 tensors unexpected: vision.attn_pool.ids, vision.attn_")):
        account(checkpoint, rules, ("Vision.*",))


def test_account_lists_everything_in_one_line(tmp_path: Path) -> None:
    found = {"norm.weight": torch.zeros(4), "layers.0.weight": torch.zeros(2, 3), "layers.1.weight": torch.zeros(2, 3)}
    checkpoint = Checkpoint(write_single(tmp_path, found | {"ids": torch.arange(2), "bias": torch.zeros(1)}))
    expected = {f"experts.{e}.weight": torch.zeros(1) for e in range(64)} | {"ids": torch.zeros(2)}
    expected |= {"layers.0.weight": torch.zeros(3, 4), "layers.1.weight": torch.zeros(3, 4)}
    with pytest.raises(UnsupportedModel) as raised:
        account(checkpoint, rules_of(expected), ("norm.*",))
    assert str(raised.value) == (
        f"{tmp_path}: the weights do not fit config.json: "
        "64 tensors missing: experts.{0..63}.weight; "
        "1 tensor unexpected: bias; "
        "2 tensors of another shape: layers.{0..1}.weight is [2, 3], expected [3, 4]; "
        "1 tensor of a dtype that is not read (expected F32, F16, BF16): ids is I64; "
        "check that both belong to the same model and were downloaded completely"
    )


def test_account_shortens_long_lists_but_keeps_the_count(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_single(tmp_path, {f"{name}.weight": torch.zeros(1) for name in "abcdefgh"}))
    with pytest.raises(UnsupportedModel) as raised:
        account(checkpoint, {}, ())
    listed = "a.weight, b.weight, c.weight, d.weight, e.weight, and 3 more such groups"
    assert f"8 tensors unexpected: {listed}" in str(raised.value)
