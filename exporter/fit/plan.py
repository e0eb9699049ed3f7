# SPDX-License-Identifier: Apache-2.0
"""Whether a model fits a machine, with what to spare, and what does where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fastmmoe.exporter.config import ExportConfig, Weights
from fastmmoe.exporter.fit.sizes import ModelSizes
from fastmmoe.exporter.targets import (
    MIXES,
    check_groups,
    check_kernels,
    choose_cache_dtype,
    choose_device,
    choose_dtype,
    choose_layout,
    choose_linears,
    choose_packing,
    with_mix,
)
from fastmmoe.runtime.backends.tensorrt.builder_memory import build_peak
from fastmmoe.runtime.backends.tensorrt.profiles import NEW_TOKENS, TYPICAL_TEXT_TOKENS, resolve_limits
from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.cost.memory import cache_bytes, cache_capacities, vision_bytes, workspace_bytes
from fastmmoe.runtime.cost.weights import EXPERTS, graph_bytes, linear_layers, stored_linears, weights_bytes
from fastmmoe.runtime.errors import InvalidRequest, UnsupportedModel
from fastmmoe.runtime.machines.devices import DEVICES, Device
from fastmmoe.runtime.machines.memory import read_memory
from fastmmoe.runtime.machines.targets import TARGETS, Target, find_target, unknown_target
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import Schedule, plan_request

GB = 10**9
SHARED_RESERVE, OWN_RESERVE = 2.0, 1.0
"""GB that are left to others: the system and CUDA where they share the memory (Jetson), CUDA alone on a card, other
programs on a CPU. Assumed, not measured."""
EXPORT_BYTES = 650_000_000
"""Memory of an export and its check beside the files that they map, whatever the model, as weights pass in pieces.
Measured with one of 1.3 GB (docs/plan.md)."""
WORDS: tuple[Weights, ...] = ("bf16", "int8", "int4")
"""For all weights, the mildest first."""


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is for.

    Attributes:
        target: name of a target, or of one of its machines (`DEVICES`).
        memory: "16GB"; None = the target's greatest, on cpu this machine's.
        tiles: of the prompt's pictures; None = one picture of the most tiles.
        text_tokens, new_tokens: of prompt and answer.
        reserve_gb: memory that is left to others; None = SHARED_RESERVE or OWN_RESERVE.
        experts, dtype, kv_cache_dtype, group_size, zero_points: as in `ExportConfig`.
    """

    target: str
    memory: str | None = None
    tiles: int | None = None
    text_tokens: int = TYPICAL_TEXT_TOKENS
    new_tokens: int = NEW_TOKENS
    reserve_gb: float | None = None
    export: ExportConfig = field(default_factory=ExportConfig)


@dataclass(frozen=True)
class Machine:
    """What a bundle is to run on; device None: this machine's CPU."""

    target: Target
    device: Device | None
    name: str
    memory: int
    reserve: int


@dataclass(frozen=True)
class Needs:
    """Bytes on the machine.

    Attributes:
        weights: by part.
        caches: of one sequence that is not pruned, prompt and answer.
        vision, workspace: estimates, see `runtime/cost/memory.py`.
        build: of the builder's process at its peak; 0 where engines are not built there.
    """

    weights: dict[str, int]
    caches: int
    vision: int
    workspace: int
    build: int

    @property
    def total(self) -> int:
        """While it runs."""
        return sum(self.weights.values()) + self.caches + self.vision + self.workspace


@dataclass(frozen=True)
class Fit:
    """One way of storing a model, and what it needs; export: with every format (`with_mix`).

    Attributes:
        weights: the word that stands for its formats; None = they are given one by one.
    """

    dtype: str
    weights: Weights | None
    export: ExportConfig
    manifest: Manifest
    limits: Limits
    needs: Needs
    spare: int

    @property
    def experts(self) -> str:
        return str(self.export.experts)

    @property
    def fits(self) -> bool:
        return self.spare >= 0


def find_machine(options: PlanOptions) -> Machine:
    """The machine that the options name.

    Raises:
        InvalidRequest: no such target or machine, or a memory that it does not have.
    """
    # Of a machine's targets the one with the newest software comes first.
    target = find_target(options.target) or next((t for t in TARGETS.values() if options.target in t.devices), None)
    if target is None:
        raise InvalidRequest(f"--target {unknown_target(options.target)}; or a machine: {', '.join(DEVICES)}")
    default = SHARED_RESERVE if target.shares_memory else OWN_RESERVE
    reserve = int((default if options.reserve_gb is None else options.reserve_gb) * GB)
    if not target.devices:
        return Machine(target, None, "this CPU", _cpu_memory(options.memory), reserve)
    device = DEVICES.get(options.target)
    if device is None:
        device = choose_device(target, options.memory or list(target.memories)[-1])
    elif options.memory not in (None, device.memory_option):
        raise InvalidRequest(f"--memory {options.memory}: {options.target} has {device.memory_option}; leave it out")
    assert device is not None
    return Machine(target, device, device.name, int(device.memory_gb * GB), reserve)


def _cpu_memory(memory: str | None) -> int:
    if memory is not None:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)GB", memory.upper())
        if found is None or float(found[1]) == 0:
            raise InvalidRequest(f"--memory {memory}: expected a size such as 16GB")
        return int(float(found[1]) * GB)
    found_memory = read_memory()
    if found_memory is None:
        raise InvalidRequest("/proc/meminfo does not say how much memory there is: give --memory, 16GB for example")
    return found_memory["MemTotal"]


def fit(sizes: ModelSizes, machine: Machine, options: PlanOptions) -> Fit:
    """What the model needs as the options store it.

    Raises:
        InvalidRequest, UnsupportedModel: what the target does not take.
    """
    target, export = machine.target, with_mix(machine.target, options.export)
    dtype, packing, linears = (
        choose_dtype(target, export.dtype),
        choose_packing(target, export),
        choose_linears(target, export),
    )
    check_groups(options.export, export)
    layout = choose_layout(target, export, dtype)
    check_kernels(target, sizes.config, packing, linears)
    cache_dtype = choose_cache_dtype(target, dtype, export.kv_cache_dtype)
    manifest = sizes.manifest(target, dtype, cache_dtype, packing, linears)
    limits = plan_limits(manifest, options)
    parts = weights_bytes(manifest, sizes.parameters, is_tiled=layout == "tiles")
    capacities = cache_capacities(manifest, unmodified(manifest, limits), limits.max_tokens, options.new_tokens)
    vision = sizes.config.vision
    needs = Needs(
        parts,
        cache_bytes(manifest, capacities),
        vision_bytes(manifest, limits, vision.heads, vision.image_size),
        workspace_bytes(manifest, limits),
        _build_bytes(machine, parts),
    )
    spare = machine.memory - machine.reserve - needs.total
    return Fit(dtype, options.export.weights, export, manifest, limits, needs, spare)


def plan_limits(manifest: Manifest, options: PlanOptions) -> Limits:
    """The greatest sizes of the prompt that is planned for; `fastmmoe build` takes the same."""
    if options.text_tokens < 0 or options.new_tokens < 1:
        raise InvalidRequest(
            f"--text-tokens {options.text_tokens}, --new-tokens {options.new_tokens}: expected at least 0 and 1"
        )
    most = resolve_limits(manifest, max_tiles=options.tiles)
    longest = manifest.processor.max_position_embeddings
    tokens = min(most.max_visual + options.text_tokens, longest)
    cache = min(tokens + options.new_tokens, longest)
    visual = min(most.max_visual, tokens)
    return Limits(max_tokens=tokens, max_visual=visual, max_cache=cache, max_tiles=most.max_tiles, max_batch=1)


def unmodified(manifest: Manifest, limits: Limits) -> Schedule:
    """The schedule of a request that keeps every visual token."""
    info = manifest.language_model
    return plan_request(
        manifest.policy,
        visual_tokens=limits.max_visual,
        moe_layers=info.moe_layers,
        top_k=info.top_k,
        method=UNMODIFIED,
    )


def _build_bytes(machine: Machine, parts: dict[str, int]) -> int:
    if machine.target.tensorrt is None:
        return 0
    # The experts are inputs of the engine.
    return build_peak(max(graph_bytes(parts | {EXPERTS: 0}).values()))


def cheaper(sizes: ModelSizes, machine: Machine, options: PlanOptions, than: Fit) -> Iterator[Fit]:
    """Other ways of storing the model that need less, the mildest first: the words that stand for all formats."""
    wanted = options.export
    blank = replace(wanted, experts=None, dense=None, vision=None, group_size=None, zero_points=False)
    for word in WORDS:
        export = replace(blank, weights=word, dtype=None if "dtype" in MIXES[word] else wanted.dtype)
        try:
            found = fit(sizes, machine, replace(options, export=export))
        except UnsupportedModel:
            continue
        if found.needs.total < than.needs.total:
            yield found


def larger_machine(machine: Machine, needed: int) -> str | None:
    """Name of the smallest machine that has room for so much: a Jetson for a Jetson, a card for a card."""
    others = [
        device
        for target in TARGETS.values()
        if target.tensorrt is not None and target.shares_memory == machine.target.shares_memory
        for device in (DEVICES[name] for name in target.devices)
        if device.memory_gb * GB - machine.reserve >= needed
    ]
    if machine.device is None or not others:
        return None
    smallest = min(others, key=lambda device: device.memory_gb)
    return next(name for name, device in DEVICES.items() if device is smallest)


def export_disk(sizes: ModelSizes, found: Fit) -> int:
    """Bytes that an export writes: the bundle's weights and, for the check, what integers stand for.

    That is one layer's experts in 16 bits, for engine targets, or one linear layer in 32 (exporter/disk_space.py).
    """
    manifest = found.manifest
    of_check = [0]
    if manifest.experts.weight_format != "float" and manifest.activation_dtype != "float32":
        of_check.append(2 * sizes.parameters[EXPERTS] // max(len(sizes.config.moe_layers), 1))
    for part, rows, columns, _ in linear_layers(manifest.language_model, manifest.vision):
        if stored_linears(manifest.linears, part).weight_format != "float":
            of_check.append(4 * rows * columns)
    return sum(found.needs.weights.values()) + max(of_check)
