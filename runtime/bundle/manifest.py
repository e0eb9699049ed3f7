# SPDX-License-Identifier: Apache-2.0
"""The bundle: a directory of ONNX graphs, weights, tokenizer and manifest.json. Written and read through this file."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fastmmoe import __version__
from fastmmoe.runtime.bundle.storage import ExpertsInfo, LinearsInfo
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.files import scratch_name
from fastmmoe.runtime.machines.targets import find_target
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.ranges import (
    Count,
    Experts,
    HeadDim,
    Heads,
    LayerIndex,
    Layers,
    OptionalHeadDim,
    OptionalWidth,
    Positions,
    Version,
    VocabSize,
    Width,
)
from fastmmoe.runtime.request.config import FamilyName, ProcessorConfig
from fastmmoe.runtime.strict_json import describe_value, parse_strictly

FORMAT = 4
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PLUGIN = "libfastmmoe_trt.so"
ENGINES = "engines.json"
TIMING_CACHE = "timing.cache"  # what TensorRT measured: it speeds up the next build and is not verified
GRAPHS = ("vision", "embedding", "language_model")
LARGEST_MANIFEST = 1 << 20
ENGINES_SCRATCH = scratch_name("engines")  # the folder that engines are built in
EXPORT_AGAIN = "export again"

LayerIndices: TypeAlias = Annotated[tuple[LayerIndex, ...], Meta(max_length=1024)]
Dtype: TypeAlias = Literal["fp32", "fp16", "bf16"]
ElementType: TypeAlias = Literal["float32", "float16", "bfloat16"]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and SHA-256 (hexadecimal) of one file."""

    bytes: Count
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class VisionInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the vision graph that its FLOPs depend on. rows_per_tile counts the class token."""

    layers: Layers
    width: Width
    mlp_width: Width
    rows_per_tile: Positions
    patch_inputs: Width
    tokens_per_tile: Positions
    projector_inputs: Width


class LanguageModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the decoder: what the runtime needs for caches and the counter for FLOPs.

    Attributes:
        cache_parts: ("key", "value"), or ("latent",) for multi-head latent attention.
        cache_shape: dimensions of one layer's cache tensor without its length: (Nkv, D) or (1, rank + rope).
        query_key_dim, value_dim: width of one head's queries and keys, and of its values.
        kv_lora_rank: 0 without latent attention.
        moe_layers: layers with a MoE block; the others have a dense MLP of dense_intermediate_size.
        shared_intermediate_size: 0 without shared experts.
        sliding_layers, sliding_window: layers that look back over that many tokens only.
    """

    hidden_size: Width
    vocab_size: VocabSize
    layers: Layers
    heads: Heads
    kv_heads: Heads
    query_key_dim: HeadDim
    value_dim: HeadDim
    kv_lora_rank: OptionalWidth
    rope_dim: OptionalHeadDim
    cache_parts: Annotated[tuple[Literal["key", "value", "latent"], ...], Meta(min_length=1, max_length=2)]
    cache_shape: tuple[Width, Width]
    moe_layers: Annotated[LayerIndices, Meta(min_length=1)]
    num_experts: Experts
    top_k: Experts
    moe_intermediate_size: Width
    shared_intermediate_size: OptionalWidth
    dense_intermediate_size: OptionalWidth
    sliding_layers: LayerIndices
    sliding_window: Positions | None


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TensorRT plugin library in the bundle: version of fastmmoe it was built from, and for which machines."""

    version: str
    architecture: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.json. Every other file of the bundle is listed in `files`.

    Attributes:
        format: of this file; readers refuse another one.
        fastmmoe_version: the exporter's version.
        model: name of the checkpoint's directory.
        family: the checkpoint's, as `FamilyName` has it.
        checkpoint_identity: `Checkpoint.identity` of the exporter.
        target, dtype: what the exporter was given.
        activation_dtype: element type at the graphs' boundaries, caches excepted.
        cache_dtype: element type of the key-value caches.
        experts: how the routed experts are stored; float = as dtype says.
        linears: how linear layers are stored.
        ops: version of each custom operator in the graphs.
        portable: whether *.portable.onnx (operators with function bodies) are there.
        plugin: what PLUGIN is; None on targets without TensorRT.
        sha256: hash of everything else in the manifest (`manifest_sha256`); `write_manifest` fills it in.
    """

    format: int
    fastmmoe_version: str
    model: str
    family: FamilyName
    checkpoint_identity: str
    target: str
    dtype: Dtype
    activation_dtype: ElementType
    cache_dtype: ElementType
    experts: ExpertsInfo
    linears: LinearsInfo
    ops: dict[str, Version]
    portable: bool
    plugin: PluginInfo | None = None
    policy: Policy
    processor: ProcessorConfig
    vision: VisionInfo
    language_model: LanguageModelInfo
    files: dict[str, FileEntry]
    sha256: str = ""

    @property
    def operator_graphs(self) -> tuple[str, ...]:
        """The graphs with operators of our own, each of which may have a portable variant."""
        return ("language_model",) if self.linears.vision.weight_format == "float" else ("vision", "language_model")

    @property
    def rounds_logits(self) -> bool:
        """Whether operators of the decoder round the rows that they multiply, which function bodies do not.

        They do on a CPU, where linear layers are packed, or experts are integers or bfloat16.
        """
        stored = (self.experts, self.linears.dense, self.linears.head)
        has_short = self.dtype == "bf16" or any(one.weight_format != "float" for one in stored)
        return has_short and not self.experts.inputs

    @property
    def has_tiled_linears(self) -> bool:
        """Whether packed linear layers stand in tiles, as the kernels of its target read them."""
        target = find_target(self.target)
        return target is None or target.linear_layout == "tiles"


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The greatest sizes that engines take.

    Attributes:
        max_tokens: tokens of one prompt, visual ones included.
        max_visual: visual tokens among them.
        max_cache: tokens a layer keeps: the prompt and the answer.
        max_tiles: tiles of one request, all pictures together.
        max_batch: sequences at once.
    """

    max_tokens: Positions
    max_visual: Positions
    max_cache: Positions
    max_tiles: Positions
    max_batch: Positions


class Engines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """engines.json: what the engines beside it were built from and for.

    Attributes:
        bundle_sha256: hash of the manifest.json that the engines belong to.
        module, tensorrt_version: Python package that built them; other versions may refuse them.
        device: the GPU they were built on and for; None where they serve all compute_capabilities (87 for 8.7).
        limits: the optimisation profiles follow from them and the manifest, see profiles.py.
        seconds: how long each of the files took to build.
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
    seconds: dict[str, float]


def engine_file(graph: str) -> str:
    """File name of a graph's TensorRT engine."""
    return f"{graph}.engine"


def graph_file(graph: str, *, portable: bool = False) -> str:
    """File name of a graph, or of its portable variant (see `Manifest.operator_graphs`)."""
    return f"{graph}.portable.onnx" if portable else f"{graph}.onnx"


def weights_file(graph: str) -> str:
    """File name of a graph's external data, shared by its variants."""
    return f"{graph}.data"


def read_engines(directory: Path) -> Engines | None:
    """engines.json, None where there is none.

    Raises:
        BundleMismatch: it is damaged or of another version.
    """
    path = directory / ENGINES
    if not path.is_file():
        return None
    _check_size(path)
    try:
        parse_strictly(path.read_bytes())
        return msgspec.json.decode(path.read_bytes(), type=Engines)
    except (ValueError, msgspec.DecodeError) as error:
        what = f"damaged, or written by another version: {error}"
        raise BundleMismatch(f"{path}: {what}; build the engines again: fastmmoe build {directory}") from error


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return FileEntry(bytes=path.stat().st_size, sha256=digest.hexdigest())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, readable and with a fixed order of keys."""
    whole = msgspec.structs.replace(manifest, sha256=manifest_sha256(manifest))
    text = msgspec.json.format(msgspec.json.encode(whole), indent=2)
    (directory / MANIFEST).write_bytes(text + b"\n")


def manifest_sha256(manifest: Manifest) -> str:
    """Hash over what a manifest says, whatever the blanks between: all of its keys but `sha256`."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, sha256=""))).hexdigest()


def read_manifest(directory: Path, *, verify: bool = True) -> Manifest:
    """Read and check a bundle's manifest, and compare the names and sizes of its files; they are not read.

    Args:
        verify: False takes a manifest that was changed after the export.
    Raises:
        BundleMismatch: not a bundle, another format or version, contradictions, a manifest that is not the one that was
            exported, or files missing, unknown or of another size.
    """
    manifest = load_manifest(directory)
    for damage in damaged_files(directory, manifest):
        raise BundleMismatch(damage)
    for damage in damaged_manifest(directory, manifest) if verify else ():
        raise BundleMismatch(damage)
    return manifest


def damaged_manifest(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What says that a legal manifest is not the one that was exported."""
    found = manifest_sha256(manifest)
    if manifest.sha256 != found:
        expected = f"{manifest.sha256[:12]}..." if manifest.sha256 else "one in it, there is none"
        yield (
            f"{directory / MANIFEST}: damaged or edited: SHA-256 {found[:12]}..., expected {expected}; export again, "
            f"with the settings that are wanted"
        )


def load_manifest(directory: Path) -> Manifest:
    """The same without a look at the files.

    Raises:
        BundleMismatch: see `read_manifest`.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleMismatch(_say_no_bundle(directory))
    _check_size(path)
    return parse_manifest(path.read_bytes(), path)


def _say_no_bundle(directory: Path) -> str:
    """What a path is instead of a bundle, and what to do."""
    if not directory.exists():
        command = shlex.join(["fastmmoe-export", "MODEL", str(directory)])
        return f"{directory}: no such directory; give a bundle's, or make one with {command}"
    if not directory.is_dir():
        return f"{directory}: not a directory; give that of a bundle"
    if (directory / "config.json").is_file():
        command = shlex.join(["fastmmoe-export", str(directory), "OUT"])
        return f"{directory}: a checkpoint, no {MANIFEST}: not a bundle; make one with {command}"
    return f"{directory}: no {MANIFEST}: not a bundle; give one, or make it with fastmmoe-export MODEL OUT"


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_MANIFEST:
        raise BundleMismatch(f"{path}: {size} bytes, expected at most {LARGEST_MANIFEST}; {EXPORT_AGAIN}")


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in these bytes, which a file of this path holds.

    Raises:
        BundleMismatch: see `read_manifest`.
    """
    # It reads the classes of this file.
    from fastmmoe.runtime.bundle.consistency import contradictions

    try:
        document = parse_strictly(data)
    except ValueError as error:
        raise BundleMismatch(f"{path}: damaged, or written by another version: {error}; {EXPORT_AGAIN}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise BundleMismatch(
            f"{path}: bundle format {found}, fastmmoe {__version__} reads format {FORMAT}; export again"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        words, _, place = str(error).partition(" - at ")
        value = describe_value(document, place.strip("`"))
        where = f" at {place}" + (f", found {value}" if value else "") if place else ""
        raise BundleMismatch(
            f"{path}: damaged, or written by another version: {words}{where}; {EXPORT_AGAIN}"
        ) from error
    for contradiction in contradictions(manifest):
        raise BundleMismatch(f"{path}: {contradiction}; {EXPORT_AGAIN}")
    return manifest


def damaged_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the names, kinds and sizes of a bundle's files, a line each."""
    root = directory.resolve()
    for name, entry in manifest.files.items():
        path = directory / name
        if not is_bare_name(name):
            yield f"{directory / MANIFEST}: file name {name!r}: expected a bare name"
        elif not path.is_file():
            kind = "no regular file" if path.exists() else "missing"
            yield f"{path}: {kind}; copy the whole bundle or export again"
        elif path.resolve().parent != root:
            yield (
                f"{path}: a symbolic link to {path.resolve()}, outside the bundle; expected the file itself: copy the "
                f"bundle with cp -rL"
            )
        elif path.stat().st_size != entry.bytes:
            yield f"{path}: {path.stat().st_size} bytes, expected {entry.bytes}; copy the bundle or export again"
    engines = (ENGINES, TIMING_CACHE, *map(engine_file, GRAPHS))
    for path in (directory / name for name in engines):
        if os.path.lexists(path) and not path.is_file():
            yield f"{path}: no regular file; remove it and build the engines again"
    known = {MANIFEST, *engines, *manifest.files}
    for path in sorted(directory.iterdir()):
        if path.name not in known and not (path.name == ENGINES_SCRATCH and path.is_dir()):
            yield f"{path}: not in {MANIFEST}; expected only the files that were exported: move it elsewhere"


def is_bare_name(name: str) -> bool:
    """Whether a file of this name is in the bundle's own directory, beside its manifest."""
    return name.isprintable() and "/" not in name and name not in {"", ".", "..", MANIFEST, ENGINES}
