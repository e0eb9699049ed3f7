# SPDX-License-Identifier: Apache-2.0
"""Machines by name, what fits on them, and what does where the model does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.fit import plan
from fastmmoe.exporter.fit.plan import (
    GB,
    PlanOptions,
    cheaper,
    export_disk,
    find_machine,
    fit,
    larger_machine,
    plan_limits,
)
from fastmmoe.exporter.fit.sizes import published_configs, read_sizes
from fastmmoe.runtime.backends.tensorrt.builder_memory import PEAK
from fastmmoe.runtime.backends.tensorrt.profiles import resolve_limits
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import TARGETS

SMALL = "deepseek-vl2-small"


def options(target: str, **values: Any) -> PlanOptions:
    stored = {
        name: values.pop(name) for name in ("weights", "experts", "dense", "dtype", "zero_points") if name in values
    }
    return PlanOptions(target, export=ExportConfig(**stored), **values)


@pytest.mark.parametrize(
    ("target", "memory", "machine", "software", "reserve"),
    [
        ("jetson-orin-nx", None, "Orin NX 16GB", "jetson-orin-nx", 2),
        ("jetson-orin-nx@jp6.2", "8GB", "Orin NX 8GB", "jetson-orin-nx@jp6.2", 2),
        ("orin-nano-4gb", None, "Orin Nano 4GB", "jetson-orin-nano", 2),
        ("rtx", None, "RTX 5090", "rtx", 1),
        ("rtx-3090", "24GB", "RTX 3090", "rtx", 1),
        ("h100", "80gb", "H100 SXM", "h100", 1),
    ],
)
def test_a_target_or_one_of_its_machines(
    target: str, memory: str | None, machine: str, software: str, reserve: int
) -> None:
    found = find_machine(options(target, memory=memory))
    assert (found.name, found.target.name, found.reserve) == (machine, software, reserve * GB)
    assert find_machine(options(target, memory=memory, reserve_gb=0.5)).reserve == GB // 2


def test_every_machine_has_a_target() -> None:
    for name, device in DEVICES.items():
        assert find_machine(options(name)).memory == device.memory_gb * GB


def test_the_cpu_has_the_memory_of_this_machine_or_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_machine(options("cpu", memory="16GB")).memory == 16 * GB
    monkeypatch.setattr(plan, "read_memory", lambda: {"MemTotal": 7})
    assert find_machine(options("cpu")).memory == 7
    monkeypatch.setattr(plan, "read_memory", lambda: None)
    with pytest.raises(InvalidRequest, match=r"^/proc/meminfo does not say .*: give --memory"):
        find_machine(options("cpu"))


@pytest.mark.parametrize(
    ("target", "memory", "message"),
    [
        (
            "jetson-orin-nz",
            None,
            r"--target 'jetson-orin-nz': .*did you mean jetson-orin-nx\?; or a machine: o",
        ),
        ("jetson-orin-nx", "32GB", "--memory 32GB: target jetson-orin-nx takes 8GB, 16GB"),
        ("orin-nx-8gb", "16GB", "--memory 16GB: orin-nx-8gb has 8GB; leave it out"),
        ("cpu", "much", "--memory much: expected a size such as 16GB"),
        ("cpu", "0GB", "--memory 0GB: expected a size such as 16GB"),
    ],
)
def test_machines_that_are_not_there(target: str, memory: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        find_machine(options(target, memory=memory))


def test_room_is_that_of_a_build_unless_said_otherwise() -> None:
    sizes, wanted = read_sizes(SMALL), options("orin-nx-16gb")
    found = fit(sizes, find_machine(wanted), wanted)
    built = resolve_limits(found.manifest)
    assert (found.limits.max_tiles, found.limits.max_visual) == (built.max_tiles, built.max_visual)
    assert found.limits.max_tokens == found.limits.max_visual + 64
    assert found.limits.max_cache == found.limits.max_tokens + 512
    other = replace(wanted, tiles=2, text_tokens=10, new_tokens=5)
    few = plan_limits(found.manifest, other)
    assert (few.max_tiles, few.max_tokens, few.max_cache) == (2, few.max_visual + 10, few.max_visual + 15)
    assert fit(sizes, find_machine(other), other).needs.total < found.needs.total
    with pytest.raises(InvalidRequest, match="--new-tokens 0: expected"):
        plan_limits(found.manifest, replace(wanted, new_tokens=0))


def test_the_issue_s_example() -> None:
    """DeepSeek-VL2-small on 16 GB: 32 GB of float weights do not fit, 4 bits do, and 8 do not."""
    sizes, wanted = read_sizes(SMALL), options("orin-nx-16gb")
    machine = find_machine(wanted)
    found = fit(sizes, machine, wanted)
    assert not found.fits and found.spare == 14 * GB - found.needs.total
    others = {other.weights: other for other in cheaper(sizes, machine, wanted, found)}
    assert list(others) == ["int8", "int4"]
    assert [other.fits for other in others.values()] == [False, True]
    assert larger_machine(machine, found.needs.total) == "agx-orin-64gb"
    assert larger_machine(machine, 10**13) is None
    # 4 bits, and a scale of 16 and a zero of 8 for each 32; of the head 8, and a scale for each 128.
    shares = {part: size / found.needs.weights[part] for part, size in others["int4"].needs.weights.items()}
    of_int4, of_int8 = (4 + 24 / 32) / 16, (8 + 16 / 128) / 16
    assert shares["routed_experts"] == shares["shared_experts"] == of_int4
    assert shares["dense"] == pytest.approx(of_int4, rel=1e-3) and shares["head"] == pytest.approx(of_int8)
    # The two matrices of latent attention that are no linear layers stay as they are.
    assert of_int4 < shares["attention"] < 1
    assert shares["vision"] == shares["embedding"] == shares["router"] == 1
    chosen = options("orin-nx-16gb", weights="int4")
    assert fit(sizes, machine, chosen).needs == others["int4"].needs


def test_other_ways_keep_the_element_type() -> None:
    sizes, wanted = read_sizes(SMALL), options("orin-nx-16gb", dtype="bf16", experts="int8")
    machine = find_machine(wanted)
    others = list(cheaper(sizes, machine, wanted, fit(sizes, machine, wanted)))
    assert [(other.weights, other.dtype) for other in others] == [("int8", "bf16"), ("int4", "bf16")]


def test_a_cpu_stores_weights_in_16_bits_where_32_do_not_fit() -> None:
    sizes, wanted = read_sizes("deepseek-vl2-tiny"), options("cpu", memory="12GB")
    machine = find_machine(wanted)
    found = fit(sizes, machine, wanted)
    others = list(cheaper(sizes, machine, wanted, found))
    words = ["bf16", *(word for word in ("int8", "int4") if word in machine.target.expert_formats)]
    assert [other.weights for other in others] == words
    mildest = others[0]
    assert (mildest.dtype, mildest.experts, mildest.export.dense, mildest.fits) == ("bf16", "float", "bf16", True)
    linears = {"vision", "attention", "dense", "shared_experts", "head"}
    for part, size in mildest.needs.weights.items():
        halved = part in linears or part == "routed_experts"
        assert size / found.needs.weights[part] == pytest.approx(0.5 if halved else 1, abs=0.02)
    assert larger_machine(machine, found.needs.total) is None


def test_a_build_takes_the_greatest_constants_of_one_engine() -> None:
    sizes = read_sizes(SMALL)
    on_device, at_home = (fit(sizes, find_machine(options(t)), options(t)).needs for t in ("jetson-orin", "cpu"))
    experts = on_device.weights["routed_experts"]
    others = sum(on_device.weights.values()) - experts - on_device.weights["vision"] - on_device.weights["embedding"]
    assert (on_device.build, at_home.build) == (int(PEAK * others), 0)


def test_what_an_export_takes() -> None:
    sizes = read_sizes(SMALL)
    layer = sizes.parameters["routed_experts"] // len(sizes.config.moe_layers)
    head = sizes.config.vocab_size * sizes.config.hidden_size
    of_check: list[tuple[str, dict[str, str], int]] = [
        ("cpu", {}, 0),
        ("cpu", {"experts": "int4"}, 0),
        ("cpu", {"weights": "int4"}, 4 * head),
        ("jetson-orin", {}, 0),
        ("jetson-orin", {"experts": "int4"}, 2 * layer),
        ("jetson-orin", {"dense": "int8"}, 4 * head),
        ("jetson-orin", {"weights": "int4"}, max(2 * layer, 4 * head)),
    ]
    for target, stored, check in of_check:
        wanted = options(target, **stored)
        found = fit(sizes, find_machine(wanted), wanted)
        assert export_disk(sizes, found) == sum(found.needs.weights.values()) + check


@pytest.mark.parametrize("model", ["demo", *published_configs()])
def test_every_model_has_a_plan_on_every_target_that_takes_it(model: str) -> None:
    sizes = read_sizes(model)
    for target in TARGETS:
        wanted = options(target)
        assert fit(sizes, find_machine(wanted), wanted).needs.total > 0
