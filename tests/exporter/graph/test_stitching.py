# SPDX-License-Identifier: Apache-2.0
"""Graphs stitched of kinds of steps: equal to a trace of the whole, whatever was traced before, at any depth."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import sympy
import torch
from torch import nn

from fastmmoe.exporter.graph import templates
from fastmmoe.exporter.graph.inputs import graph_program
from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.graph.templates import as_expression
from fastmmoe.exporter.graph.tracing import GraphInput
from fastmmoe.exporter.graph.weights import ParameterTensor
from fastmmoe.exporter.models.decoder import LanguageModel
from fastmmoe.exporter.models.steps import Part, Program, Step, Take
from fastmmoe.exporter.ops import OPS
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Call, Chunk
from fastmmoe.runtime.method.policy import METHODS, SPARSEVLM
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.types import Array
from tests.support.bare_models import FLOAT32, BareModel, trace_bare
from tests.support.tiny_decoders import VOCAB, H, decoder, info_of
from tests.support.whole_trace import whole_trace

OPSET = 23
WIDTH, HIDDEN = 96, 160
MATRICES = ("fc1.weight", "fc2.weight")
VECTOR: Take = (("T",), torch.float32)
Feeds = dict[str, Array]


def saved(model: ir.Model, directory: Path) -> tuple[bytes, bytes]:
    """The graph's file and that of its weights."""
    directory.mkdir(exist_ok=True)
    ir.save(model, directory / "graph.onnx", external_data="graph.data", align_threshold=0)
    return (directory / "graph.onnx").read_bytes(), (directory / "graph.data").read_bytes()


# The graph of a whole decoder


def decoder_inputs(model: LanguageModel) -> list[GraphInput]:
    given = signatures.language_model_inputs(info_of(model), model.policy, "float32", "float32")
    return [GraphInput(t.name, t.shape, getattr(torch, t.dtype)) for t in given]


def session_of(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    register_native_ops(options, {spec.name: spec.version for spec in OPS})
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, model: LanguageModel, schedule: Schedule) -> list[Feeds]:
    """All outputs of a prefill of two prompts (of one by SparseVLM, which prunes no more), and of a step behind it."""
    lengths = [20] if schedule.method == SPARSEVLM else [20, 17]
    prompts = range(len(lengths))
    info, policy, capacity = info_of(model), model.policy, 40
    random = np.random.default_rng(0)
    embeds = [random.standard_normal((rows, H), np.float32) for rows in (20, 17, 1, 1)]
    visual = np.arange(3, 15, dtype=np.int32)
    groups = len(model.groups)
    sizes = signatures.cache_shapes(info, policy, "float32", 2, [capacity] * groups)
    caches = {name: np.zeros(shape, dtype) for name, (shape, dtype) in sizes.items()}
    calls: list[tuple[list[Chunk], list[int], Any]] = [
        ([Chunk(i, embeds[i], visual, schedule) for i in prompts], [0] * len(prompts), [[0, 0]] * groups),
        (
            [Chunk(i, embeds[2 + i], NO_VISUAL_TOKENS, schedule.for_text()) for i in prompts],
            [20, 17][: len(prompts)],
            None,
        ),
    ]
    found: list[Feeds] = []
    for chunks, before, past in calls:
        if past is None:
            past = [found[0][f"present_lengths.{g}"].tolist() for g in range(groups)]
            caches = {name: found[0][graph_io.present_name(name)] for name in caches}
        feeds = signatures.feeds(info, Call(policy, chunks, before, past, 0.3, 5)) | caches
        names = [output.name for output in session.get_outputs()]
        found.append(dict(zip(names, session.run(names, feeds), strict=True)))
    return found


def described(values: Any) -> list[tuple[str, Any, Any]]:
    """Name, type and shape of inputs or outputs, whatever the order in which a sum is written."""
    return [
        (v.name, v.dtype, [d if isinstance(d, int) else sympy.expand(as_expression(d.value)) for d in v.shape])
        for v in values
    ]


def test_a_stitched_decoder_is_the_whole_one_bit_by_bit() -> None:
    """Every method, two groups with sliding layers, sinks: outputs of a prefill and of a step by each method."""
    model = decoder(method="all", prune_layers=(1,), window=5, sliding=(0, 2, 3), has_sinks=True)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs, empty = decoder_inputs(model), copy.deepcopy(model).to("meta")
    stitched = trace(empty, empty.program(), inputs, values.__getitem__, name="decoder", opset=OPSET)
    whole = whole_trace(empty, inputs, values.__getitem__, opset=OPSET)
    assert described(stitched.graph.inputs) == described(whole.graph.inputs)
    assert described(stitched.graph.outputs) == described(whole.graph.outputs)
    weights = {n: v.const_value for n, v in stitched.graph.initializers.items() if n in values}
    assert weights.keys() == values.keys()
    for name, tensor in weights.items():
        assert isinstance(tensor, ParameterTensor) and (tensor.parameter, tensor.order) == (name, None)
        assert np.array_equal(tensor.numpy(), values[name].numpy())
    sessions = [session_of(one) for one in (stitched, whole)]
    kept = set()
    for method in METHODS:
        retention = None if method == "none" else 0.5
        schedule = plan_request(
            model.policy, visual_tokens=12, moe_layers=model.moe_layers, top_k=2, method=method, retention=retention
        )
        ours, theirs = (run(session, model, schedule) for session in sessions)
        for mine, other in zip(ours, theirs, strict=True):
            assert list(mine) == list(other)
            for name, value in mine.items():
                np.testing.assert_array_equal(value, other[name], err_msg=f"{method}: {name}")
        kept.add(tuple(tuple(ours[0][graph_io.kept_index(s)].tolist()) for s in range(len(model.policy.sites))))
        assert ours[0]["logits"].shape[1] == VOCAB and np.isfinite(ours[1]["logits"]).all()
    assert len(kept) == len(METHODS)


def node_names(model: LanguageModel) -> list[str]:
    graph = trace(model, model.program(), decoder_inputs(model), no_load, name="decoder", opset=OPSET).graph
    return [str(node.name) for node in graph]


def test_nodes_are_named_by_their_layer() -> None:
    names = node_names(decoder(method="fastmmoe", prune_layers=(2,)).to("meta"))
    for expected, layers in (
        ("layers.{}.self_attn/FmmAttention", range(4)),
        ("layers.{}.token_prune/FmmTokenPrune", (2,)),
        ("layers.{}.mlp.experts/FmmSparseMoE", (1, 2, 3)),
    ):
        operator = expected.partition("/")[2]
        assert [n for n in names if n.endswith(operator)] == [expected.format(i) for i in layers]
    assert {"layers.2.mlp.experts.router/Gemm", "layers.2.token_prune.experts.router/Gemm"} <= {*names}


PLACE = re.compile(r"((?:random_scores|rater_weights|head|groups\.\d|layers\.\d)(?:\.\w+)*)/[A-Z][A-Za-z]*(?:_\d+)?")


def test_no_node_is_without_its_layer_group_or_end() -> None:
    """Every method: what is not of a layer is of a group, of what comes before all of them, or of the head."""
    names = node_names(decoder(method="all", prune_layers=(2,), window=3, sliding=(0, 3)).to("meta"))
    assert len({*names}) == len(names)
    places = {found[1] for name in names if (found := PLACE.fullmatch(name)) or pytest.fail(name)}
    assert places >= {"random_scores", "rater_weights", "groups.0", "groups.0.rotary", "groups.1.rotary", "head"}
    assert places >= {"head.norm", "head.lm_head", "layers.0", "layers.0.mlp.up_proj", "layers.1.mlp.shared_experts"}
    # FastV prunes behind the layer before.
    of_site = {place for place in places if "prune" in place or "watched" in place}
    assert of_site == {
        *(f"layers.{i}.{inside}" for i in (1, 2) for inside in ("watched_rows", "self_attn.watched", "token_prune")),
        "layers.2.token_prune.experts.router",
    }
    assert {place for place in places if place.endswith(".rotary") and place.startswith("layers")} == {
        f"layers.{i}.self_attn.rotary" for i in range(4)
    }


def no_load(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} is read")


# What it costs


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has traced nothing yet."""
    monkeypatch.setattr(templates, "_known", {})


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many kinds each call of the exporter had so far."""
    found: list[int] = []
    export = templates.export_module

    def counting(module: Any, *args: Any, **options: Any) -> Any:
        found.append(len(module.steps))
        return export(module, *args, **options)

    monkeypatch.setattr(templates, "export_module", counting)
    yield found


@pytest.mark.usefixtures("forgotten")
def test_depth_costs_no_tracing(exports: list[int]) -> None:
    """Eight layers of the 30B model, then 48: the exporter is called once, for six kinds of steps."""
    few, many = (
        trace_bare(BareModel("30B", layers, FLOAT32, method="fastmmoe", prune_layers=(1, 3)), "language_model")
        for layers in (8, 48)
    )
    assert exports == [6]
    assert len(many.graph) - len(few.graph) == 40 * nodes_of_layer(many, 20)
    trace_bare(BareModel("30B", 48, FLOAT32, method="fastmmoe", prune_layers=(2, 5)), "language_model")
    assert exports == [6]


def nodes_of_layer(model: ir.Model, layer: int) -> int:
    return len([node for node in model.graph if node.name and re.match(rf"layers\.{layer}[./]", node.name)])


@pytest.mark.usefixtures("forgotten")
def test_all_graphs_of_a_model_take_one_call(exports: list[int]) -> None:
    model = BareModel("30B", 8, FLOAT32, method="none")
    names = [graph for graph, _ in model.graphs.items()]
    steps = [step for graph in names for step in graph_program(model, graph).steps]
    kinds = len({id(template) for template in templates.templates_of(steps, opset=OPSET)})
    assert exports == [kinds]
    for graph in names:
        trace_bare(model, graph)
    assert exports == [kinds]


MOST = {
    ("30B", 48, "fastmmoe", "language_model"): (20, 600),
    ("30B", 48, "all", "language_model"): (30, 600),
    ("241B", 2, "none", "vision"): (20, 1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MOST, ids=lambda case: "-".join(map(str, case)))
def test_cpu_seconds_and_memory_of_large_models(case: tuple[Any, ...]) -> None:
    """In a fresh process, imports included; the vision tower is InternViT-6B, whole."""
    seconds, megabytes = MOST[case]
    command = [sys.executable, "-m", "tests.support.bare_models", *map(str, case)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most, status = 0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        anonymous = re.search(r"RssAnon:\s+(\d+) kB", status.read_text(encoding="ascii"))
        most = max(most, int(anonymous[1]) if anonymous else 0)
        time.sleep(0.02)
    assert process.stdout is not None and process.returncode == 0
    *_, used = process.stdout.read().split()
    assert float(used) < seconds and most / 1e3 < megabytes, f"{used} s, {most / 1e3:.0f} MB"


@pytest.mark.usefixtures("forgotten")
def test_what_was_traced_before_does_not_show(tmp_path: Path) -> None:
    """A graph behind another of the same process is that of a fresh one: shared kinds, and others beside them."""
    other = decoder(method="sparsevlm", prune_layers=(1,), window=3).to("meta")
    model = decoder(method="fastmmoe", prune_layers=(1,), window=3)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    model = model.to("meta")

    def traced() -> ir.Model:
        return trace(model, model.program(), decoder_inputs(model), values.__getitem__, name="decoder", opset=OPSET)

    fresh = saved(traced(), tmp_path / "fresh")
    assert saved(traced(), tmp_path / "again") == fresh
    templates._known.clear()
    trace(other, other.program(), decoder_inputs(other), no_load, name="decoder", opset=OPSET)
    known = len(templates._known)
    behind = traced()
    assert 0 < len(templates._known) - known < len({id(t) for t in templates._known.values()}) - 1
    assert saved(behind, tmp_path / "behind") == fresh


# Weights


class Mlp(nn.Module):
    """Two linear layers over [T, rows, WIDTH], as in a vision tower: their graph transposes the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": self.fc2(self.fc1(inputs["x"]).relu())}


class Weights:
    """Values by name. `loaded` has the names in the order of reading, `most_alive` the greatest number of matrices
    in memory at once; every load makes a new tensor."""

    def __init__(self, module: nn.Module) -> None:
        torch.manual_seed(0)
        self.values = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
        self.loaded: list[str] = []
        self.alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.most_alive = 0

    def load(self, name: str) -> torch.Tensor:
        self.loaded.append(name)
        value = self.values[name].clone()
        if name in MATRICES:
            self.alive.add(value.untyped_storage())
            self.most_alive = max(self.most_alive, len(self.alive))
        return value


@pytest.fixture(scope="module")
def traced() -> tuple[ir.Model, Weights]:
    with torch.device("meta"):
        module = Mlp()
    weights = Weights(module)
    program = Program.of(module, {"x": (("T", 4, WIDTH), torch.float32)}, ("y",))
    inputs = [GraphInput("x", ("T", 4, WIDTH), torch.float32)]
    return trace(module, program, inputs, weights.load, name="mlp", opset=OPSET), weights


def test_nothing_is_read_while_tracing(traced: tuple[ir.Model, Weights]) -> None:
    model, weights = traced
    assert not weights.loaded
    tensors = {n: v.const_value for n, v in model.graph.initializers.items()}
    assert {name: (t.parameter, t.order) for name, t in tensors.items() if isinstance(t, ParameterTensor)} == {
        "fc1.weight": ("fc1.weight", (1, 0)),
        "fc1.bias": ("fc1.bias", None),
        "fc2.weight": ("fc2.weight", (1, 0)),
    }


def test_transposed_matrices_are_written_one_at_a_time(traced: tuple[ir.Model, Weights], tmp_path: Path) -> None:
    """The graph has no Transpose left; its matrices are the parameters', transposed, each read once."""
    model, weights = traced
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu", "MatMul"]
    before = len(weights.loaded)
    ir.save(model, tmp_path / "mlp.onnx", external_data="mlp.data", size_threshold_bytes=0)
    assert sorted(name for name in weights.loaded[before:] if name in MATRICES) == sorted(MATRICES)
    assert weights.most_alive == 1
    products = [node for node in ir.load(tmp_path / "mlp.onnx").graph if node.op_type == "MatMul"]
    for node, name in zip(products, MATRICES, strict=True):
        matrix = node.inputs[1]
        assert matrix is not None and matrix.const_value is not None
        assert torch.equal(torch.from_numpy(matrix.const_value.numpy().copy()), weights.values[name].T)


class BothWays(nn.Module):
    """A matrix as it is, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": inputs["x"] @ self.weight + inputs["x"] @ self.weight.transpose(0, 1)}


def test_a_parameter_in_two_orders_has_two_names() -> None:
    with torch.device("meta"):
        module = BothWays()
    take: Take = (("T", 2, 3), torch.float32)
    program, inputs = Program.of(module, {"x": take}, ("y",)), [GraphInput("x", *take)]
    graph = trace(module, program, inputs, lambda _: torch.arange(9.0).view(3, 3), name="both", opset=OPSET).graph
    found = {n: v.const_value for n, v in graph.initializers.items()}
    tensors = {n: (t.parameter, t.order) for n, t in found.items() if isinstance(t, ParameterTensor)}
    assert tensors == {"weight": ("weight", None), "weight.transposed": ("weight", (1, 0))}


# How steps are put together


class Scale(nn.Module):
    """y = x * by * weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": inputs["x"] * inputs["by"] * self.weight}


class Scales(nn.Module):
    """Three factors of a vector, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scale() for _ in range(3))

    def program(self, take: Take = VECTOR) -> Program:
        takes: dict[str, Take] = {"x": take, "by": ((1,), torch.float32)}
        steps = [
            Step(f"layers.{i}", layer, takes, {"x": f"x.{i}", "by": Part("factors", i)}, {"y": f"x.{i + 1}"})
            for i, layer in enumerate(self.layers)
        ]
        return Program(steps, {"y": "x.3"})


def scaled(program: Callable[[Scales], Program], shape: tuple[int | str, ...]) -> ir.Model:
    module = Scales()
    values = {f"layers.{i}.weight": torch.tensor([i + 2.0]) for i in range(3)}
    inputs = [GraphInput("x.0", shape, torch.float32), GraphInput("factors", (3,), torch.float32)]
    return trace(module, program(module), inputs, values.__getitem__, name="scales", opset=OPSET)


def test_a_layer_has_its_own_weights_and_its_part() -> None:
    """2 * 3 * 4 by the weights, 5 * 7 * 11 by the factors."""
    model = scaled(lambda module: module.program(), ("rows + 1",))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x.0": np.array([1.0, 2.0], np.float32), "factors": np.array([5.0, 7.0, 11.0], np.float32)}
    assert session.run(["y"], feeds)[0].tolist() == [24 * 385, 48 * 385]
    assert [str(d) for value in model.graph.outputs for d in value.shape or ()] == ["rows + 1"]
    assert [node.name for node in model.graph][:2] == ["layers.0/Slice", "layers.0/Mul"]


def test_what_a_step_does_not_expect_is_refused() -> None:
    for take, shape in (
        (((4,), torch.float32), (5,)),
        ((("T", "T"), torch.float32), ("rows", "columns")),
        ((("T", 2), torch.float32), ("rows",)),
        ((("T",), torch.float16), ("rows",)),
    ):
        with pytest.raises(ValueError, match=r"^layers.0: x is FLOAT\[.*\], expected torch.float"):
            scaled(lambda module, take=take: module.program(take), shape)  # type: ignore[misc]
