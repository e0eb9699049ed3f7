# SPDX-License-Identifier: Apache-2.0
"""checkpoint directory -> bundle: trace, write, check, publish."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from fastmmoe.exporter.checkpoint import Checkpoint
from fastmmoe.exporter.config import DEMO, ExportConfig, checkpoint_directory
from fastmmoe.exporter.families import Model, Precision
from fastmmoe.exporter.fastmmoe.policy import PolicyModel, PolicyOptions
from fastmmoe.exporter.graph_inputs import graph_inputs
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.ops import OPS
from fastmmoe.exporter.ops.functions import function_for
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.pack_experts import pack_experts
from fastmmoe.exporter.processor_config import read_processor_config
from fastmmoe.exporter.targets import (
    DEFAULT_ATOL,
    DTYPES,
    activation_dtype,
    check_kernels,
    choose_dtype,
    choose_packing,
)
from fastmmoe.exporter.tracing import trace
from fastmmoe.exporter.verify import CheckFailed, Difference, check_structure, compare
from fastmmoe.exporter.weight_check import check_weights
from fastmmoe.runtime.bundle import (
    MANIFEST,
    PLUGIN,
    TOKENIZER,
    Manifest,
    PluginInfo,
    graph_file,
    weights_file,
    write_manifest,
)
from fastmmoe.runtime.engines import build_engines
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.plugin_library import find_plugin
from fastmmoe.runtime.processor_config import ProcessorConfig
from fastmmoe.runtime.session import Graphs
from fastmmoe.runtime.targets import TARGETS, Target
from fastmmoe.runtime.tensorrt_api import load_module

Report = Callable[[str], None]


def export(config: ExportConfig, report: Report = print) -> Path:
    """Write a bundle. It appears complete or not at all.

    Args:
        report: is called with a line for each step.
    Returns:
        The bundle's directory.
    Raises:
        InvalidRequest, UnsupportedModel: see `ExportConfig`, `Checkpoint`, `Model`.
        BundleMismatch, EngineBuildFailed: the target's plugin or TensorRT is not there or does not fit.
        CheckFailed: the written graphs do not agree with torch; nothing is left behind.
    """
    target = TARGETS[config.target]
    dtype = choose_dtype(target, config.dtype)
    packing = choose_packing(target, config)
    atol = DEFAULT_ATOL[dtype] if config.atol is None else config.atol
    if not atol > 0:
        raise InvalidRequest(f"--atol {atol}: expected a positive number")
    name = Path(config.model).resolve().name if config.model != DEMO else DEMO
    out = Path(f"{name}-{target.name}") if config.out is None else config.out
    _check_out(out, config.overwrite)
    plugin = _find_plugin(target)
    with _scratch_beside(out) as scratch:
        checkpoint = Checkpoint(checkpoint_directory(config.model))
        model = Model(checkpoint, config.policy, _precision(target, dtype, packing))
        check_kernels(target, model.config, packing)
        processor = read_processor_config(checkpoint.path, model.config_reader, vocab_size=model.config.vocab_size)
        if config.model == DEMO:
            report("demo: a small model trained on drawn scenes; it knows nothing else")
        _report_model(model, name, processor, report)
        if config.policy.found_for is not None:
            _report_policy(model, config.policy.found_for, report)
        check_weights(model, report)
        staged = scratch / "bundle"
        manifest = _write(staged, name, model, processor, target, dtype, plugin, report)
        _check(staged, scratch / "twin", manifest, model, config.policy, atol, report)
        if target.tensorrt is not None and target.tensorrt.is_ahead_of_time:
            build_engines(staged, report=report)
        _publish(staged, out, scratch)
    report(f"wrote {out}: {_megabytes(out)}")
    return out


def _precision(target: Target, dtype: str, packing: Packing | None) -> Precision:
    activations = getattr(torch, activation_dtype(target, dtype))
    return Precision(getattr(torch, DTYPES[dtype]), activations, packing=packing)


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    is_bundle = (out / MANIFEST).is_file()
    if not is_bundle:
        raise InvalidRequest(f"{out} exists and is not a bundle; give another output directory")
    if not overwrite:
        raise InvalidRequest(f"{out} exists; give another output directory, or --overwrite to replace it")


def _find_plugin(target: Target) -> tuple[Path, PluginInfo] | None:
    """The target's plugin library; what will be needed is looked for now, not after the long trace."""
    if target.tensorrt is None:
        return None
    if target.tensorrt.is_ahead_of_time:
        load_module(target.tensorrt.module, target.tensorrt.install)
    return find_plugin(target, target.tensorrt)


class _scratch_beside(tempfile.TemporaryDirectory):  # noqa: N801 - used like the function it wraps
    """A hidden scratch directory on the output's file system, removed however the export ends."""

    def __init__(self, out: Path) -> None:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        super().__init__(prefix=f".{out.name}.", dir=out.absolute().parent)

    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


def _report_model(model: Model, name: str, processor: ProcessorConfig, report: Report) -> None:
    config, policy = model.config, model.policy
    report(
        f"{name}: {model.family}, {config.num_hidden_layers} layers, {config.moe.num_experts} experts, "
        f"top-{config.moe.top_k}; every tensor accounted for"
    )
    if policy.method == "none":
        report("pruning: none in the graph (--method none)")
    for method, layers in policy.prune_layers.items():
        report(f"pruning: {method} at layers {','.join(map(str, layers))}")
    if policy.method != "none":
        report(f"default: {policy.default_method} at retention {policy.retention:g}, alpha {policy.alpha:g}")
    unread = model.config_reader.unread()
    if unread:
        report(f"config.json keys not read: {', '.join(unread)}")
    if processor.image_token_id is None:
        report("no tokenizer.json: this bundle takes ready-made tensors (fastmmoe run --inputs) only")


def _report_policy(model: Model, found_for: PolicyModel, report: Report) -> None:
    """What a policy file says, and whether it was found for another checkpoint of the same shape."""
    policy = model.policy
    exponents, experts = (",".join(f"{v:.4g}" for v in each) for each in (policy.stage_exponents, policy.visual_top_k))
    report(f"policy: stage exponents {exponents}; experts per visual token by MoE layer {experts}")
    theirs, ours = found_for.checkpoint_identity, model.checkpoint.identity
    if theirs != ours:
        report(
            f"policy: found for ANOTHER checkpoint of this shape ({theirs[:12]}, this one is {ours[:12]}): measure its "
            f"quality on this one"
        )


def _write(
    directory: Path,
    name: str,
    model: Model,
    processor: ProcessorConfig,
    target: Target,
    dtype: str,
    plugin: tuple[Path, PluginInfo] | None,
    report: Report,
) -> Manifest:
    """Write graphs, weights, tokenizer, plugin and manifest."""
    directory.mkdir()
    portable = target.tensorrt is None
    write_graphs(directory, model, portable=portable, report=report)
    tokenizer = model.checkpoint.path / TOKENIZER
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, directory / TOKENIZER)
    info = None
    if plugin is not None:
        library, info = plugin
        shutil.copyfile(library, directory / PLUGIN)
        report(f"copied the TensorRT plugin {info.version} for {info.architecture}")
    manifest = build_manifest(
        directory, name, model, processor, target=target.name, dtype=dtype, portable=portable, plugin=info
    )
    write_manifest(directory, manifest)
    return manifest


def write_graphs(directory: Path, model: Model, *, portable: bool, report: Report) -> None:
    """Trace and write the graphs; weights go to external data, one tensor in memory at a time."""
    for graph, module in model.graphs.items():
        start = time.perf_counter()
        load = functools.partial(_load, model, graph)
        traced = trace(module, graph_inputs(model, graph), load, name=graph)
        if model.precision.packing is not None and not model.precision.is_twin and graph == "language_model":
            pack_experts(traced, load, model.precision.packing)
        # One worker: tensors are read, written and dropped in turn.
        ir.save(
            traced, directory / graph_file(graph), external_data=weights_file(graph), alignment=64, align_threshold=0
        )
        report(f"traced {graph}: {len(traced.graph)} nodes ({time.perf_counter() - start:.1f} s)")
    if portable:
        _write_portable(directory)


def _load(model: Model, graph: str, name: str) -> torch.Tensor:
    return model.load(f"{graph}.{name}")


def _write_portable(directory: Path) -> None:
    """The language model again, over the same weights, with a function body for each operator."""
    model = ir.load(directory / graph_file("language_model"))
    for spec in OPS:
        nodes = [node for node in model.graph if node.op_type == spec.name]
        if nodes:
            attributes = {a.name: a.value for a in nodes[0].attributes.values()}
            function = function_for(spec, attributes)
            model.functions[function.identifier()] = function
    ir.save(model, directory / graph_file("language_model", portable=True))


def _check(
    staged: Path, twin: Path, manifest: Manifest, model: Model, options: PolicyOptions, atol: float, report: Report
) -> None:
    report(f"[✓] {check_structure(staged, model, portable=manifest.portable)}")
    if model.precision.activations == torch.float32:
        directory, reference = staged, model
    else:
        report("tracing the float32 twin that the check runs, as no CPU runtime computes these graphs")
        directory, reference = twin, Model(model.checkpoint, options, model.precision.float32_twin())
        twin.mkdir()
        write_graphs(twin, reference, portable=False, report=lambda _: None)
        manifest = build_manifest(
            twin, manifest.model, reference, manifest.processor, target="cpu", dtype="fp32", portable=False
        )
    variants = {"onnxruntime": Graphs(directory, manifest)}
    if manifest.portable:
        variants["onnxruntime, portable"] = Graphs(directory, manifest, portable=True)
    differences = compare(reference, variants, manifest.processor, atol)
    for difference in differences:
        report(_difference_line(difference))
    if not all(difference.is_ok for difference in differences):
        raise CheckFailed("the exported graphs differ from torch by more than the tolerance; nothing was written")


def _difference_line(difference: Difference) -> str:
    mark = "✓" if difference.is_ok else "✗"
    return f"[{mark}] torch = {difference.what}: {difference.value:.1e} (atol {difference.tolerance:g})"


def _publish(staged: Path, out: Path, scratch: Path) -> None:
    """Move the finished bundle to its place; an old one is swapped out first."""
    staged.chmod(0o755)
    if out.exists():
        out.rename(scratch / "replaced")
    staged.rename(out)


def _megabytes(directory: Path) -> str:
    size = sum(path.stat().st_size for path in directory.iterdir())
    return f"{len(list(directory.iterdir()))} files, {size / 1e6:.1f} MB"
