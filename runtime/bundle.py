# SPDX-License-Identifier: Apache-2.0
"""The bundle: a directory of ONNX graphs, weights, tokenizer and manifest.json. Written and read through this file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from fastmmoe import __version__
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.policy import Policy
from fastmmoe.runtime.processor_config import ProcessorConfig

FORMAT = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PLUGIN = "libfastmmoe_trt.so"
ENGINES = "engines.json"
GRAPHS = ("vision", "embedding", "language_model")


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and SHA-256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


class VisionInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the vision graph that its FLOPs depend on. rows_per_tile counts the class token."""

    layers: int
    width: int
    mlp_width: int
    rows_per_tile: int
    patch_inputs: int
    tokens_per_tile: int
    projector_inputs: int


class LanguageModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the decoder: what the runtime needs for caches and the counter for FLOPs.

    Attributes:
        cache_parts: ("key", "value"), or ("latent",) for multi-head latent attention.
        cache_shape: dimensions of one layer's cache tensor without its length: (Nkv, D) or (rank + rope,).
        query_key_dim, value_dim: of one head. kv_lora_rank: 0 without latent attention.
        moe_layers: layers with a MoE block; the others have a dense MLP of dense_intermediate_size.
        shared_intermediate_size: 0 without shared experts.
        sliding_layers, sliding_window: layers that look back over that many tokens only.
    """

    hidden_size: int
    vocab_size: int
    layers: int
    heads: int
    kv_heads: int
    query_key_dim: int
    value_dim: int
    kv_lora_rank: int
    rope_dim: int
    cache_parts: tuple[str, ...]
    cache_shape: tuple[int, ...]
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    dense_intermediate_size: int
    sliding_layers: tuple[int, ...]
    sliding_window: int | None


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TensorRT plugin library in the bundle: version of fastmmoe it was built from, and for which machines."""

    version: str
    architecture: str


class ExpertsInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the routed experts' weights are stored, as in FmmSparseMoE's contract; group_size 0 with float."""

    weight_format: Literal["float", "int8", "int4"]
    group_size: int
    zero_points: bool


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.json. Every other file of the bundle is listed in `files`.

    Attributes:
        format: of this file; readers refuse another one.
        fastmmoe_version: of the exporter.
        model: name of the checkpoint's directory. family: "deepseek_vl2" or "internvl3_5".
        checkpoint_identity: `Checkpoint.identity` of the exporter.
        target, dtype: as given to the exporter. activation_dtype: element type at the graphs' boundaries.
        experts: how the routed experts are stored; float = as dtype says.
        ops: version of each custom operator in the graphs.
        portable: whether *.portable.onnx (operators with function bodies) are there.
        plugin: of PLUGIN; None on targets without TensorRT.
    """

    format: int
    fastmmoe_version: str
    model: str
    family: Literal["deepseek_vl2", "internvl3_5"]
    checkpoint_identity: str
    target: str
    dtype: str
    activation_dtype: str
    experts: ExpertsInfo
    ops: dict[str, int]
    portable: bool
    plugin: PluginInfo | None = None
    policy: Policy
    processor: ProcessorConfig
    vision: VisionInfo
    language_model: LanguageModelInfo
    files: dict[str, FileEntry]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What engines can take.

    Attributes:
        max_tokens: of one prompt, visual ones included. max_visual: visual tokens among them.
        max_cache: tokens a layer keeps: the prompt and the answer. max_tiles: of one request, all pictures together.
    """

    max_tokens: int
    max_visual: int
    max_cache: int
    max_tiles: int


class Engines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """engines.json: what the engines beside it were built from and for.

    Attributes:
        bundle_sha256: of the manifest.json they belong to.
        module, tensorrt_version: Python package that built them; other versions may refuse them.
        device: the GPU they were built on and for; None where they serve all compute_capabilities (87 for 8.7).
        limits: the optimisation profiles follow from them and the manifest, see profiles.py.
    """

    format: int
    fastmmoe_version: str
    plugin_version: str
    bundle_sha256: str
    module: str
    tensorrt_version: str
    device: str | None
    compute_capabilities: tuple[int, ...]
    limits: Limits
    files: dict[str, FileEntry]


def engine_file(graph: str) -> str:
    """File name of a graph's TensorRT engine."""
    return f"{graph}.engine"


def graph_file(graph: str, *, portable: bool = False) -> str:
    """File name of a graph; only the language model has custom operators and so a portable variant."""
    return f"{graph}.portable.onnx" if portable and graph == "language_model" else f"{graph}.onnx"


def weights_file(graph: str) -> str:
    """File name of a graph's external data, shared by its variants."""
    return f"{graph}.data"


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return FileEntry(bytes=path.stat().st_size, sha256=digest.hexdigest())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, readable and with a fixed order of keys."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (directory / MANIFEST).write_bytes(text + b"\n")


def read_manifest(directory: Path) -> Manifest:
    """Read and check a bundle's manifest; file sizes are compared, hashes are not computed.

    Raises:
        BundleMismatch: not a bundle, another format or version, or files missing or of another size.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleMismatch(
            f"{directory}: no {MANIFEST}: not a bundle; make one with fastmmoe-export MODEL {directory}"
        )
    data = path.read_bytes()
    try:
        header = msgspec.json.decode(data, type=_Header)
        if header.format != FORMAT:
            raise BundleMismatch(
                f"{path}: bundle format {header.format}, fastmmoe {__version__} reads format {FORMAT}; export again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleMismatch(f"{path}: damaged, or written by another version: {error}; export again") from error
    _check_files(directory, manifest)
    return manifest


class _Header(msgspec.Struct):
    format: int


def _check_files(directory: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        if "/" in name or name in {"", ".", ".."}:
            raise BundleMismatch(f"{directory / MANIFEST}: file name {name!r}: expected a bare name")
        path = directory / name
        if not path.is_file():
            raise BundleMismatch(f"{path}: missing; copy the whole bundle or export again")
        if path.stat().st_size != entry.bytes:
            raise BundleMismatch(
                f"{path}: {path.stat().st_size} bytes, expected {entry.bytes}; copy the bundle or export again"
            )
