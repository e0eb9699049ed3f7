# SPDX-License-Identifier: Apache-2.0
"""fastmmoe profile on real bundles: every node finds its part, and parts add up to what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fastmmoe.runtime.bundle.manifest import GRAPHS, read_manifest
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.profiling.parts import REST, TITLES, part_of

QUICK = ("-n", "2", "-w", "1", "-t", "3", "--max-tiles", "1")
CHECKPOINTS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
PARTS = {
    "vision": {"patches", "norms", "attention", "mlp", "projector"},
    "embedding": {"embedding"},
    "language_model": {"norms", "rope", "projections", "attention", "pruning", "router", "routed_experts", "head"},
}
BUT_REST = {"Add", "Mul", "Shape", "Slice", "Squeeze"}
"""What operators of the graph are of no part: sums of the residual stream with layer scales, lengths of groups."""


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_node_has_its_part(name: str, bundle: Callable[..., Path]) -> None:
    directory = bundle(name)
    for graph in GRAPHS:
        nodes = onnx.load(directory / f"{graph}.onnx", load_external_data=False).graph.node
        parts = {node.name: part_of(graph, node.name) for node in nodes}
        assert PARTS[graph] <= {*parts.values()} <= {*TITLES}
        rest = [node for node in nodes if parts[node.name] == REST and not node.name.startswith("groups.")]
        assert {node.op_type for node in rest} <= BUT_REST
    dense = read_manifest(directory).language_model
    assert ("dense" in parts.values()) == (len(dense.moe_layers) < dense.layers)
    assert ("shared_experts" in parts.values()) == bool(dense.shared_intermediate_size)


def profiled(directory: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    capsys.readouterr()
    assert main(["profile", str(directory), *QUICK, *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def check(found: Any, phases: list[str]) -> None:
    assert [phase["phase"] for phase in found["phases"]] == phases
    for phase in found["phases"]:
        assert sum(part["ms"] for part in phase["parts"]) == pytest.approx(phase["nodes_ms"])
        assert sum(node["ms"] for node in phase["nodes"]) == pytest.approx(phase["nodes_ms"])
        assert sum(part["nodes"] for part in phase["parts"]) == len(phase["nodes"])
        assert phase["nodes_ms"] + phase["outside_ms"] == pytest.approx(phase["total_ms"])
        assert phase["outside_ms"] >= 0
        assert sum(part["share"] for part in phase["parts"]) + phase["outside_share"] == pytest.approx(1)
        # ONNX Runtime's names of what it fuses and adds still say where they are from.
        (rest,) = (part for part in phase["parts"] if part["part"] == REST)
        assert rest["ms"] < 0.5 * phase["nodes_ms"]


@pytest.mark.engines
def test_a_bundle(bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two requests of two steps each behind one that warms up."""
    svg = tmp_path / "profile.svg"
    found = profiled(bundle("dsvl2-mha"), capsys, "-r", "50%", "--svg", str(svg))
    assert [phase["calls"] for phase in found["phases"]] == [2, 2, 4]
    if found["machine"]["provider"] == "cpu":
        check(found, ["vision", "prefill", "decode"])
        by_part = {part["part"]: part for part in found["phases"][1]["parts"]}
        assert by_part["routed_experts"]["nodes"] == len(read_manifest(bundle("dsvl2-mha")).language_model.moe_layers)
        assert by_part["routed_experts"]["roofline_share"] > 0
    assert svg.read_text().count("<rect") > 20


def test_the_portable_graph(bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What its functions are inlined to is of the operator's part."""
    found = profiled(bundle("dsvl2-mha"), capsys, "--portable")
    check(found, ["vision", "prefill", "decode"])
    by_part = {part["part"]: part["nodes"] for part in found["phases"][1]["parts"]}
    assert by_part["routed_experts"] > 20 and by_part["attention"] > 20 and by_part["pruning"] > 20
