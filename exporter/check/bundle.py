# SPDX-License-Identifier: Apache-2.0
"""The whole check of a bundle that has been written: structure, weights in the files, and what the graphs compute."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fastmmoe.exporter.check.experts import Experts
from fastmmoe.exporter.check.parity import Difference, Written, compare
from fastmmoe.exporter.check.portable import check_same_graph
from fastmmoe.exporter.check.samples import check_samples
from fastmmoe.exporter.check.stored import Initializer, StoredWeights
from fastmmoe.exporter.check.structure import CheckFailed, check_structure
from fastmmoe.exporter.check.widened import write_widened
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.types import Say

WIDENED = "read as float32"


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that is not published yet.

    Attributes:
        parameters: by graph, the tensors that stand for its parameters.
        hashed_at: time in ns at which hashing of its files began.
    """

    directory: Path
    manifest: Manifest
    parameters: dict[str, dict[str, Initializer]]
    hashed_at: int


def check_bundle(
    bundle: WrittenBundle, scratch: Path, model: Model, options: PolicyOptions, atol: float | None, say: Say
) -> list[Difference]:
    """Check a bundle by itself.

    Args:
        scratch: not there; for files of the check, which removes it.
        model: what was exported.
        options: that it was made with.
        atol: see `compare`.
        say: is called with a line for each step, and while it takes long.
    Returns:
        Differences from torch, all within their tolerances.
    Raises:
        CheckFailed: something is not what the checkpoint and its configuration ask for.
        BundleMismatch: a graph is not what the manifest says.
    """
    directory, manifest = bundle.directory, bundle.manifest
    say(f"[✓] {check_structure(directory, model, portable=manifest.portable)}")
    for graph in manifest.operator_graphs if manifest.portable else ():
        check_same_graph(directory, graph)
    inputs = manifest.experts.inputs
    weights = {
        graph: StoredWeights(directory, graph, parameters, inputs if graph == "language_model" else {})
        for graph, parameters in bundle.parameters.items()
    }
    say("comparing the written weights with the checkpoint ...")
    say(f"[✓] {check_samples(model, weights, say)}")
    try:
        differences = _differences(bundle, weights, scratch, model, options, atol, say)
    finally:
        # TensorRT refuses weights in files that have a second name.
        shutil.rmtree(scratch, ignore_errors=True)
    for difference in differences:
        say(_difference_line(difference))
    failed = next((difference for difference in differences if not difference.is_ok), None)
    if failed is not None:
        raise CheckFailed(_failure(failed))
    return differences


def _differences(
    bundle: WrittenBundle,
    weights: dict[str, StoredWeights],
    scratch: Path,
    model: Model,
    options: PolicyOptions,
    atol: float | None,
    say: Say,
) -> list[Difference]:
    """What the graphs compute, beside torch; graphs of 16 bits as float32."""
    written = Written(bundle.directory, bundle.manifest, weights)
    if model.precision.activations != torch.float32:
        say("the check reads these graphs as float32, as no CPU runtime computes them in 16 bits")
        widened = write_widened(bundle.directory, scratch, bundle.manifest, model.graphs.vision)
        experts = Experts(weights["language_model"], model.precision.packing, scratch)
        written = Written(scratch, widened, weights, experts, WIDENED)
        model = Model(model.checkpoint, options, model.precision.float32_twin())
    elif model.precision.storage is not None:
        model = Model(model.checkpoint, options, model.precision)
        model.store_experts()
    return compare(model, written, atol, say)


def _failure(failed: Difference) -> str:
    """What is wrong, in one line; differences from torch are `--atol`'s."""
    more = ", and more with --atol" if failed.against == "torch" else ""
    return (
        f"the exported graphs differ from {failed.against} by more than the tolerance: {failed.what} by "
        f"{failed.value:.2g}, where {failed.tolerance:.2g} is allowed{more}; nothing was written"
    )


def _difference_line(difference: Difference) -> str:
    mark = "✓" if difference.is_ok else "✗"
    bound = "atol" if difference.against == "torch" else "at most"
    what = f"{difference.against} = {difference.what}"
    return f"[{mark}] {what}: {difference.value:.1e} ({bound} {difference.tolerance:g})"
