# SPDX-License-Identifier: Apache-2.0
"""Golden data for every test: where it is, its arrays, and complete checkpoint directories made from it."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe import __version__
from fastmmoe.runtime.types import Array

REPOSITORY = Path(__file__).resolve().parents[1]
TRIMMED = REPOSITORY / "tests" / "golden"

# In the trimmed copy this array of an .npz file names the arrays that hold only the last token row.
LAST_ROW_ONLY = "last_row_only"

# How far float32 rounding moves a quantity between two correct implementations, by docs/precision.md: a share of the
# recorded array's root mean square, times the decoder layers it went through. Of attention, which is mostly far below
# its mean, a share of each entry and of an even spread.
ROUNDING = {
    "image_features": 2e-5,
    "hidden_states": 6e-5,
    "attention": 1e-4,
    "router_logits": 4e-5,
    "routing_weights": 4e-5,
    "cache": 4e-5,
    "logits": 4e-5,
}

CHECKPOINTS = (
    "dsvl2-mha",
    "dsvl2-mla",
    "internvl-qwen3moe",
    "internvl-gptoss",
    "internvl-qwen3moe-original",
    "internvl-gptoss-original",
)

# The full set keeps these apart from the checkpoint they belong to.
DEEPSEEK_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")

# Hugging Face name -> name in the original checkpoints. q, k and v are one fused tensor there.
ORIGINAL_NAMES = (
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
    (r"^vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
    (r"^vision_tower\.embeddings\.patch_embeddings\.projection\.", "vision_model.embeddings.patch_embedding."),
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".ls\1"),
)
FUSED = re.compile(r"^(vision_tower\.encoder\.layer\.\d+)\.attention\.q_proj\.(weight|bias)$")
PART_OF_FUSED = re.compile(r"^vision_tower\.encoder\.layer\.\d+\.attention\.[kv]_proj\.(weight|bias)$")


def original_name(name: str) -> str:
    """The name in the original InternVL checkpoint of a Hugging Face tensor that is not fused there."""
    for pattern, replacement in ORIGINAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def original_tensors(tensors: dict[str, Array]) -> dict[str, Array]:
    """The tensors of a Hugging Face InternVL checkpoint under the original names, q, k and v fused by rows."""
    renamed: dict[str, Array] = {}
    for name, tensor in tensors.items():
        fused = FUSED.match(name)
        if fused:
            parts = [tensors[f"{fused[1]}.attention.{x}_proj.{fused[2]}"] for x in "qkv"]
            renamed[original_name(f"{fused[1]}.attn.qkv.{fused[2]}")] = np.concatenate(parts)
        elif not PART_OF_FUSED.match(name):
            renamed[original_name(name)] = tensor
    return renamed


def unpack_golden(trimmed: Path, directory: Path) -> Path:
    """Give the trimmed copy the file names of the full set, in the new directory.

    Plain files are copied (through a link a careless test would change the committed file), .xz files decompressed,
    and the original InternVL checkpoints get the tensors of their Hugging Face twin under the original names.
    """
    from safetensors.numpy import load_file, save_file

    for file in sorted(trimmed.rglob("*")):
        target = directory / file.relative_to(trimmed)
        if file.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, target)
    for original in sorted(directory.glob("internvl-*-original")):
        twin = original.with_name(original.name.removesuffix("-original"))
        tensors = original_tensors(load_file(twin / "model.safetensors"))
        save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    return directory


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


def load_array(golden: Path, file: str, name: str) -> Array:
    """A whole golden array; skips the test where this copy of the golden data lacks it or cut it."""
    path = golden / file
    if path.is_file():
        with np.load(path) as arrays:
            cut = arrays[LAST_ROW_ONLY].tolist() if LAST_ROW_ONLY in arrays.files else []
            if name in arrays.files and name not in cut:
                array: Array = arrays[name]
                return array
    pytest.skip(f"needs {file}:{name} of the full golden set")


def load_last_logits(golden: Path, file: str) -> Array:
    """Logits [B, V] float32 of the last token of every row; the trimmed copy has them for every outputs file."""
    with np.load(golden / file) as arrays:
        logits: Array = arrays["logits"][:, -1]
    return logits


@pytest.fixture(scope="session")
def golden_array(golden: Path) -> partial[Array]:
    """Function (file, name) -> array: load_array on the golden directory."""
    return partial(load_array, golden)


@pytest.fixture(scope="session")
def golden_last_logits(golden: Path) -> partial[Array]:
    """Function file -> logits [B, V]: load_last_logits on the golden directory."""
    return partial(load_last_logits, golden)


def rounding_of(quantity: str, theirs: Array, layers: int) -> tuple[float, float]:
    """(rtol, atol) within which a float32 array of this quantity after so many decoder layers equals the recorded one.

    `theirs` is the whole recorded array, or all of it that is compared. Image features have gone through no decoder
    layer: 1.
    """
    share = ROUNDING[quantity] * layers
    if quantity == "attention":
        return share, share / theirs.shape[-1]
    return 0.0, share * float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))


@pytest.fixture(scope="session")
def rounding() -> Callable[[str, Array, int], tuple[float, float]]:
    """Function (quantity, recorded array, layers) -> (rtol, atol): rounding_of."""
    return rounding_of


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


def _copy(source: Path, directory: Path) -> None:
    """Copy what a checkpoint directory has, not the recorded outputs and tensor lists; a copy may be changed."""
    for file in sorted(source.iterdir()):
        if file.suffix != ".npz" and not file.name.startswith("tensors"):
            shutil.copyfile(file, directory / file.name)


def write_checkpoint(golden: Path, name: str, directory: Path) -> Path:
    """Write the complete checkpoint `name` (one of CHECKPOINTS) into the new directory and return it.

    DeepSeek checkpoints get the tokenizer files of dsvl2-inputs; original InternVL ones the tokenizer of their twin.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"golden checkpoint {name!r}: there are {', '.join(CHECKPOINTS)}")
    directory.mkdir(parents=True)
    _copy(golden / name, directory)
    if name.startswith("dsvl2-"):
        for file in DEEPSEEK_TOKENIZER:
            shutil.copyfile(golden / "dsvl2-inputs" / file, directory / file)
    elif name.endswith("-original"):
        twin = golden / name.removesuffix("-original")
        shutil.copyfile(twin / "tokenizer.json", directory / "tokenizer.json")
    return directory


@pytest.fixture(scope="session")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function name -> complete checkpoint directory, one for the whole session: read it, do not change it."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.is_dir() else write_checkpoint(golden, name, directory)

    return get


WIDE = 64
"""Expert hidden size of wide checkpoints: the CUDA kernels take multiples of 16, of 32 with int4."""


def write_wide_checkpoint(source: Path, directory: Path) -> Path:
    """Copy a checkpoint with its experts filled up with zeros to WIDE; what the model computes stays the same."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (text,) = (config[key] for key in ("language_config", "text_config", "llm_config") if key in config)
    key = "moe_intermediate_size" if "moe_intermediate_size" in text else "intermediate_size"
    inner, text[key] = text[key], WIDE
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if ".experts." in name or ".shared_experts." in name:
            # A fused or shared size is some times as great; no other size of theirs is a multiple of it.
            more = [0 if size % inner else size // inner * (WIDE - inner) for size in tensor.shape]
            tensors[name] = np.pad(tensor, [(0, count) for count in more])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


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
