# SPDX-License-Identifier: Apache-2.0
"""checkpoint directory -> bundle: trace, write, check, publish."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path

import onnx_ir as ir
import torch

from fastmmoe.exporter.check.parity import Difference, Written, compare
from fastmmoe.exporter.check.structure import CheckFailed, check_structure
from fastmmoe.exporter.check.weights import check_weights
from fastmmoe.exporter.checkpoint.config_reader import listed
from fastmmoe.exporter.checkpoint.processor import read_processor_config
from fastmmoe.exporter.config import DEMO, ExportConfig
from fastmmoe.exporter.disk_space import check_space, weights_bytes
from fastmmoe.exporter.graph.inputs import graph_inputs
from fastmmoe.exporter.graph.pack_experts import pack_experts
from fastmmoe.exporter.graph.tracing import trace
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops import OPS
from fastmmoe.exporter.ops.functions import function_for
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.output_directory import reserve_output
from fastmmoe.exporter.plan import ExportPlan, plan_export
from fastmmoe.exporter.pruning.settings import PolicyModel
from fastmmoe.exporter.targets import DTYPES, activation_dtype, check_kernels
from fastmmoe.runtime.backends.tensorrt.build import build_engines
from fastmmoe.runtime.bundle.manifest import (
    MANIFEST,
    PLUGIN,
    TOKENIZER,
    Manifest,
    graph_file,
    weights_file,
    write_manifest,
)
from fastmmoe.runtime.bundle.verification import leave_stamp
from fastmmoe.runtime.files import Report, size_text, writing
from fastmmoe.runtime.machines.targets import Target
from fastmmoe.runtime.request.config import ProcessorConfig

TWIN_NAME = "float32 twin"
STAGED, TWIN = "bundle", "twin"
"""In the scratch directory: the unfinished bundle, and the graphs that the check of a 16-bit one runs."""


def export(config: ExportConfig, report: Report = print) -> Path:
    """Write a bundle. It appears complete or not at all.

    Args:
        report: is called with a line before and after each step.
    Returns:
        The bundle's directory.
    Raises:
        As `plan_export` and `run_export`.
    """
    return run_export(plan_export(config, report), report)


def run_export(plan: ExportPlan, report: Report) -> Path:
    """Write the bundle of a plan.

    Raises:
        InvalidRequest: the output directory is taken, its disk too small, or the policy does not fit the model.
        UnsupportedModel: see `Model`.
        WriteFailed: the disk is full, or the like.
        CheckFailed: the written graphs do not agree with torch; nothing is left behind.
    """
    config, target, checkpoint = plan.config, plan.target, plan.checkpoint
    with reserve_output(plan.out, checkpoint.path, overwrite=config.overwrite, report=report) as output:
        model = Model(checkpoint, config.policy, _precision(target, plan.dtype, plan.packing))
        check_kernels(target, model.config, plan.packing)
        processor = read_processor_config(
            checkpoint.path,
            model.config_reader,
            vocab_size=model.config.vocab_size,
            chat_template=config.chat_template,
            report=report,
        )
        if config.model == DEMO:
            report("demo: a small model trained on drawn scenes; it knows nothing else")
        _report_model(model, plan.name, report)
        if config.policy.found_for is not None:
            _report_policy(model, config.policy.found_for, report)
        check_space(plan.out, model)
        check_weights(model, report)
        staged = output.scratch / STAGED
        manifest, hashed_at = _write(staged, plan, model, processor, report)
        _check(staged, output.scratch / TWIN, manifest, model, plan, report)
        if target.tensorrt is not None and target.tensorrt.is_ahead_of_time:
            build_engines(staged, report=report, verify=False)
        output.publish(staged)
    leave_stamp(plan.out, manifest, hashed_at)
    report(f"wrote {plan.out}: {_contents(plan.out)}")
    return plan.out


def _precision(target: Target, dtype: str, packing: Packing | None) -> Precision:
    activations = getattr(torch, activation_dtype(target, dtype))
    return Precision(getattr(torch, DTYPES[dtype]), activations, packing=packing)


def _report_model(model: Model, name: str, report: Report) -> None:
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
        report(f"config.json keys not read: {listed(unread)}")
    if not (model.checkpoint.path / TOKENIZER).is_file():
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
    directory: Path, plan: ExportPlan, model: Model, processor: ProcessorConfig, report: Report
) -> tuple[Manifest, int]:
    """Write graphs, weights, tokenizer, plugin and manifest; return it and the time at which hashing began."""
    directory.mkdir()
    portable = plan.target.is_portable
    write_graphs(directory, model, portable=portable, report=report, shown=plan.out)
    tokenizer = model.checkpoint.path / TOKENIZER
    if tokenizer.is_file():
        _copy(tokenizer, directory / TOKENIZER, plan.out)
    info = None
    if plan.plugin is not None:
        library, info = plan.plugin
        _copy(library, directory / PLUGIN, plan.out)
        report(f"copied the TensorRT plugin {info.version} for {info.architecture}")
    hashed_at = time.time_ns()
    manifest = build_manifest(
        directory,
        plan.name,
        model,
        processor,
        target=plan.target.name,
        dtype=plan.dtype,
        portable=portable,
        plugin=info,
    )
    with writing(directory / MANIFEST, 0, shown=plan.out / MANIFEST):
        write_manifest(directory, manifest)
    return manifest, hashed_at


def _copy(source: Path, file: Path, shown: Path) -> None:
    with writing(file, source.stat().st_size, shown=shown / file.name):
        shutil.copyfile(source, file)


def write_graphs(directory: Path, model: Model, *, portable: bool, report: Report, shown: Path | None = None) -> None:
    """Trace and write the graphs; weights go to external data, one tensor in memory at a time.

    Args:
        shown: what errors call the directory.
    Raises:
        WriteFailed: the disk is full, or the like.
    """
    sizes = weights_bytes(model)
    for graph, module in model.graphs.items():
        depth = f" ({model.config.num_hidden_layers} layers)" if graph == "language_model" else ""
        report(f"tracing {graph}{depth} ...")
        start = time.perf_counter()
        load = functools.partial(_load, model, graph)
        traced = trace(module, graph_inputs(model, graph), load, name=graph)
        if model.precision.packing is not None and not model.precision.is_twin and graph == "language_model":
            pack_experts(traced, load, model.precision.packing)
        file, weights = graph_file(graph), weights_file(graph)
        with writing(directory / weights, sizes[graph], shown=(shown or directory) / f"{file} with {weights}"):
            # One worker: tensors are read, written and dropped in turn.
            ir.save(traced, directory / file, external_data=weights, alignment=64, align_threshold=0)
        size = size_text((directory / weights).stat().st_size) if (directory / weights).is_file() else "no weights"
        report(f"traced {graph}: {len(traced.graph)} nodes, {size} ({time.perf_counter() - start:.1f} s)")
    if portable:
        file = graph_file("language_model", portable=True)
        least = (directory / graph_file("language_model")).stat().st_size
        with writing(directory / file, least, shown=(shown or directory) / file):
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


def _check(staged: Path, twin: Path, manifest: Manifest, model: Model, plan: ExportPlan, report: Report) -> None:
    report(f"[✓] {check_structure(staged, model, portable=manifest.portable)}")
    written = Written(staged, manifest)
    if model.precision.activations != torch.float32:
        report("the check runs a float32 twin of these graphs, as no CPU runtime computes them")
        model = Model(model.checkpoint, plan.config.policy, model.precision.float32_twin())
        twin.mkdir()
        write_graphs(
            twin,
            model,
            portable=False,
            report=lambda line: report(f"{TWIN_NAME}: {line}"),
            shown=plan.out / f"({TWIN_NAME})",
        )
        manifest = build_manifest(
            twin, manifest.model, model, manifest.processor, target="cpu", dtype="fp32", portable=False
        )
        written = Written(twin, manifest, TWIN_NAME)
    differences = compare(model, written, plan.atol, report)
    for difference in differences:
        report(_difference_line(difference))
    if not all(difference.is_ok for difference in differences):
        raise CheckFailed("the exported graphs differ from torch by more than the tolerance; nothing was written")


def _difference_line(difference: Difference) -> str:
    mark = "✓" if difference.is_ok else "✗"
    return f"[{mark}] torch = {difference.what}: {difference.value:.1e} (atol {difference.tolerance:g})"


def _contents(directory: Path) -> str:
    size = sum(path.stat().st_size for path in directory.iterdir())
    return f"{len(list(directory.iterdir()))} files, {size / 1e6:.1f} MB"
