# SPDX-License-Identifier: Apache-2.0
"""checkpoint directory -> bundle: trace, write, check, publish."""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from fastmmoe import __version__
from fastmmoe.exporter.check.bundle import WrittenBundle, check_bundle
from fastmmoe.exporter.check.parity import Difference
from fastmmoe.exporter.check.stored import Initializer, initializers_of
from fastmmoe.exporter.check.weights import check_weights
from fastmmoe.exporter.checkpoint.config_reader import listed
from fastmmoe.exporter.config import DEMO, ExportConfig
from fastmmoe.exporter.disk_space import check_space, weights_bytes
from fastmmoe.exporter.graph.expert_inputs import make_expert_inputs
from fastmmoe.exporter.graph.fuse_linears import fuse_linears
from fastmmoe.exporter.graph.inputs import graph_inputs, graph_program
from fastmmoe.exporter.graph.join_linears import join_linears
from fastmmoe.exporter.graph.pack_experts import pack_experts
from fastmmoe.exporter.graph.pack_linears import pack_linears
from fastmmoe.exporter.graph.save import save_graph
from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.graph.templates import templates_of
from fastmmoe.exporter.journal import Journal
from fastmmoe.exporter.manifest import build_manifest, graph_metadata
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models.steps import Program
from fastmmoe.exporter.ops import DOMAIN, OPS
from fastmmoe.exporter.ops.contract import TILES
from fastmmoe.exporter.ops.functions import function_for
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.output_directory import reserve_output
from fastmmoe.exporter.plan import ExportPlan, plan_export
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.progress import Progress
from fastmmoe.exporter.pruning.settings import PolicyModel
from fastmmoe.exporter.targets import DTYPES, activation_dtype, check_kernels, check_memory, opset
from fastmmoe.exporter.weight_stream import WeightStream
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
from fastmmoe.runtime.cli.command import abandoning
from fastmmoe.runtime.files import size_text, writing
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.types import Say

STAGED, CHECKED = "bundle", "check"
"""In the scratch directory: the unfinished bundle, and the graphs that the check of a 16-bit one runs."""


def export(config: ExportConfig, say: Say = print) -> Path:
    """Write a bundle. It appears complete or not at all.

    Args:
        say: is called with a line before and after each step.
    Returns:
        The bundle's directory.
    Raises:
        As `plan_export` and `run_export`.
    """
    plan = plan_export(config, say)
    run_export(plan, say)
    return plan.out


@dataclass(frozen=True)
class Exported:
    """A bundle that is at its place; differences: from torch, as the check found them."""

    manifest: Manifest
    differences: list[Difference]


def run_export(plan: ExportPlan, say: Say) -> Exported:
    """Write the bundle of a plan.

    Raises:
        InvalidRequest: the output directory is taken, its disk too small, or the policy does not fit the model.
        UnsupportedModel: see `Model`.
        WriteFailed: the disk is full, or the like.
        CheckFailed: the written graphs do not agree with torch; nothing is left behind.
    """
    config, target, checkpoint = plan.config, plan.target, plan.checkpoint
    with reserve_output(plan.out, checkpoint.path, overwrite=config.overwrite, resume=config.resume, say=say) as output:
        model = Model(checkpoint, config.policy, _precision(plan))
        check_kernels(target, model.config, plan.packing, plan.linears)
        processor = read_processor_config(
            checkpoint.path,
            model.config_reader,
            vocab_size=model.config.vocab_size,
            chat_template=config.chat_template,
            say=say,
        )
        if config.model == DEMO:
            say("demo: a small model trained on drawn scenes; it knows nothing else")
        _report_model(model, plan.name, say)
        if config.policy.found_for is not None:
            _report_policy(model, config.policy.found_for, say)
        journal = Journal(output.scratch, _key(plan), say) if config.resume else None
        check_space(plan.out, model, 0 if journal is None else journal.kept_bytes)
        if plan.device is not None:
            say(check_memory(target, plan.device, sum(weights_bytes(model).values())))
        check_weights(model, say)
        staged = output.scratch / STAGED
        with abandoning(output.abandon):
            written = _write(staged, plan, model, processor, journal, say)
            differences = check_bundle(written, output.scratch / CHECKED, model, config.policy, config.atol, say)
        if target.tensorrt is not None and target.tensorrt.is_ahead_of_time:
            build_engines(staged, say=say, verify=False)
        output.publish(staged)
        # In here, for whoever interrupts now is told that the bundle was written.
        leave_stamp(plan.out, written.manifest, written.hashed_at)
        say(f"wrote {plan.out}: {_contents(plan.out)}")
    return Exported(written.manifest, differences)


def _key(plan: ExportPlan) -> str:
    """What the files of an export depend on: an interrupted one is gone on with only where all of it is the same."""
    # Files are told by their inodes, wherever they stand.
    config = replace(plan.config, model="", out=None, atol=None, overwrite=False)
    files = sorted((path.name, repr(state)) for path, state in plan.checkpoint.files.items())
    chosen = (plan.target.name, plan.dtype, plan.cache_dtype, plan.packing, plan.linears, plan.layout)
    parts = (__version__, torch.__version__, plan.checkpoint.identity, files, config, chosen)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _precision(plan: ExportPlan) -> Precision:
    names = DTYPES[plan.dtype], activation_dtype(plan.target, plan.dtype), plan.cache_dtype
    experts, activations, caches = (getattr(torch, name) for name in names)
    return Precision(
        experts,
        activations,
        packing=plan.packing,
        kv_caches=caches,
        linears=plan.linears,
        is_tiled=plan.layout == TILES,
    )


def _report_model(model: Model, name: str, say: Say) -> None:
    config, policy = model.config, model.policy
    say(
        f"{name}: {model.family_name}, {config.num_hidden_layers} layers, {config.moe.num_experts} experts, "
        f"top-{config.moe.top_k}; every tensor accounted for"
    )
    if policy.method == UNMODIFIED:
        say("pruning: none in the graph (--method none)")
    for method, layers in policy.prune_layers.items():
        say(f"pruning: {method} at layers {','.join(map(str, layers))}")
    if policy.method != UNMODIFIED:
        say(f"default: {policy.default_method} at retention {policy.retention:g}, alpha {policy.alpha:g}")
    unread = model.config_reader.unread()
    if unread:
        say(f"config.json keys not read: {listed(unread)}")
    if not (model.checkpoint.path / TOKENIZER).is_file():
        say("no tokenizer.json: this bundle takes ready-made tensors (fastmmoe run --inputs) only")


def _report_policy(model: Model, found_for: PolicyModel, say: Say) -> None:
    """What a policy file says, and whether it was found for another checkpoint of the same shape."""
    policy = model.policy
    exponents, experts = (",".join(f"{v:.4g}" for v in each) for each in (policy.stage_exponents, policy.visual_top_k))
    say(f"policy: stage exponents {exponents}; experts per visual token by MoE layer {experts}")
    theirs, ours = found_for.checkpoint_identity, model.checkpoint.identity
    if theirs != ours:
        say(
            f"policy: found for ANOTHER checkpoint of this shape ({theirs[:12]}, this one is {ours[:12]}): measure its "
            f"quality on this one"
        )


def _write(
    directory: Path, plan: ExportPlan, model: Model, processor: ProcessorConfig, journal: Journal | None, say: Say
) -> WrittenBundle:
    """Write graphs, weights, tokenizer, plugin and manifest."""
    directory.mkdir(exist_ok=journal is not None)
    portable = plan.target.is_portable
    parameters = write_graphs(
        directory,
        plan.name,
        model,
        opset=opset(plan.target, plan.dtype),
        portable=portable,
        say=say,
        shown=plan.out,
        journal=journal,
    )
    has_engines = plan.target.tensorrt is not None
    inputs = make_expert_inputs(directory / graph_file("language_model")) if has_engines else {}
    tokenizer = model.checkpoint.path / TOKENIZER
    if tokenizer.is_file():
        _copy(tokenizer, directory / TOKENIZER, plan.out)
    info = None
    if plan.plugin is not None:
        library, info = plan.plugin
        _copy(library, directory / PLUGIN, plan.out)
        say(f"copied the TensorRT plugin {info.version} for {info.architecture}")
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
        expert_inputs=inputs,
    )
    with writing(directory / MANIFEST, 0, shown=plan.out / MANIFEST):
        write_manifest(directory, manifest)
    return WrittenBundle(directory, manifest, parameters, hashed_at)


def _copy(source: Path, file: Path, shown: Path) -> None:
    with writing(file, source.stat().st_size, shown=shown / file.name):
        shutil.copyfile(source, file)


def write_graphs(
    directory: Path,
    name: str,
    model: Model,
    *,
    opset: int,
    portable: bool,
    say: Say,
    shown: Path | None = None,
    journal: Journal | None = None,
) -> dict[str, dict[str, Initializer]]:
    """Trace and write the graphs; weights go to external data, piece by piece.

    Args:
        name: the model's, for `graph_metadata`.
        opset: see `trace`.
        shown: what errors call the directory.
        journal: see `save_graph`.
    Returns:
        By graph, the tensors that stand for its parameters.
    Raises:
        WriteFailed: the disk is full, or the like.
    """
    sizes = weights_bytes(model)
    parameters: dict[str, dict[str, Initializer]] = {}
    programs = _trace_kinds(model, opset, say)
    for graph, module in model.graphs.items():
        depth = f" ({model.config.num_hidden_layers} layers)" if graph == "language_model" else ""
        say(f"writing {graph}{depth} ...")
        start = time.perf_counter()
        load, stream = functools.partial(_load, model, graph), WeightStream(model, graph)
        traced = trace(module, programs[graph], graph_inputs(model, graph), load, name=graph, opset=opset)
        fuse_linears(traced)
        join_linears(traced, functools.partial(_linear_packing, model, graph))
        parameters[graph] = initializers_of(traced)
        _pack(traced, model, graph, stream)
        traced.metadata_props.update(graph_metadata(name, model, graph))
        file, weights = graph_file(graph), weights_file(graph)
        with writing(directory / weights, sizes[graph], shown=(shown or directory) / f"{file} with {weights}"):
            progress = Progress(f"writing {weights}", say)
            save_graph(traced, directory / file, directory / weights, stream, journal=journal, progress=progress)
        size = size_text((directory / weights).stat().st_size) if (directory / weights).is_file() else "no weights"
        say(f"wrote {graph}: {len(traced.graph)} nodes, {size} ({time.perf_counter() - start:.1f} s)")
        if portable and _has_operators(traced):
            file = graph_file(graph, portable=True)
            least = (directory / graph_file(graph)).stat().st_size
            with writing(directory / file, least, shown=(shown or directory) / file):
                _write_portable(directory, graph)
    return parameters


def _trace_kinds(model: Model, opset: int, say: Say) -> dict[str, Program]:
    """The program of each graph, with every kind of step traced: one call of the exporter for all of them."""
    programs = {graph: graph_program(model, graph) for graph, _ in model.graphs.items()}
    say("tracing each kind of step once ...")
    start = time.perf_counter()
    kinds = templates_of([step for program in programs.values() for step in program.steps], opset=opset)
    say(f"traced {len({id(kind) for kind in kinds})} kinds of steps ({time.perf_counter() - start:.1f} s)")
    return programs


def _load(model: Model, graph: str, name: str) -> torch.Tensor:
    return model.load(f"{graph}.{name}")


def _pack(traced: ir.Model, model: Model, graph: str, stream: WeightStream) -> None:
    """Give a graph the weights that its precision asks for; they are packed when it is written."""
    storage = model.precision.storage
    if storage is not None and graph == "language_model":
        pack_experts(traced, stream.experts, storage)
    pack_linears(traced, functools.partial(_linear_packing, model, graph), stream.rows)


def _linear_packing(model: Model, graph: str, name: str) -> LinearPacking | None:
    return model.linear_packing(f"{graph}.{name}")


def _has_operators(traced: ir.Model) -> bool:
    return any(node.domain == DOMAIN for node in traced.graph)


def _write_portable(directory: Path, graph: str = "language_model") -> None:
    """A graph again, over the same weights, with a function body for each operator."""
    model = ir.load(directory / graph_file(graph))
    for spec in OPS:
        variants: dict[str, ir.Function] = {}
        for node in model.graph:
            if node.op_type != spec.name:
                continue
            attributes = {a.name: a.value for a in node.attributes.values()}
            # Nodes of other attributes call a function of another name: ONNX Runtime takes overloads for one.
            key = spec.encode(attributes)
            if key not in variants:
                function = variants[key] = function_for(spec, attributes)
                function.name = spec.name if len(variants) == 1 else f"{spec.name}_{len(variants)}"
                model.functions[function.identifier()] = function
            node.op_type = variants[key].name
    ir.save(model, directory / graph_file(graph, portable=True))


def _contents(directory: Path) -> str:
    size = sum(path.stat().st_size for path in directory.iterdir())
    return f"{len(list(directory.iterdir()))} files, {size / 1e6:.1f} MB"
