# SPDX-License-Identifier: Apache-2.0
"""The golden data: their trimmed copy, their arrays, and complete checkpoint directories made from them."""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from fastmmoe.runtime.types import Array

GoldenArray: TypeAlias = Callable[[str, str], Array]
"""(file, name) -> a whole golden array."""

REPOSITORY = Path(__file__).resolve().parents[2]
TRIMMED = REPOSITORY / "tests" / "golden"

# In the trimmed copy this array of an .npz file names the arrays that hold only the last token row.
LAST_ROW_ONLY = "last_row_only"

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
