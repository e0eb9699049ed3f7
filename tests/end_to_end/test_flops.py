# SPDX-License-Identifier: Apache-2.0
"""The counter against the exported graphs: every node that multiplies matrices, by the shapes it has in a run.

The count here knows nothing of the runtime's counter. A node's part is read off its name, its FLOPs off the shapes that
ONNX Runtime gives its inputs. Of an attention over T rows the causal half counts, T (T + 1) / 2 pairs, or fewer within
a window. The graph works with latent attention absorbed, where the specification counts it expanded.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import Manifest, read_manifest
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.cost.flops import RequestFlops, count_request, vision_flops
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.types import Array

Shape = tuple[int, ...]

COMPARISON = ("dsvl2-mla", "internvl-gptoss")
ONE_METHOD = "internvl-qwen3moe"
TEXT_BEFORE, VISUAL, TEXT_AFTER = 9, 600, 41
REQUESTS = (
    {"method": "none"},
    {"method": "fastmmoe", "retention": 0.5},
    {"method": "fastmmoe", "retention": 0.1, "visual_top_k": 3},
    {"method": "fastmmoe", "retention": 1.0, "visual_top_k": 1},
    {"method": "random", "retention": 0.3},
    {"method": "fastv", "retention": 0.25},
    {"method": "sparsevlm", "retention": 0.3},
)
COUNTED = ("MatMul", "Gemm", "Attention", "FmmAttention", "FmmSparseMoE", "FmmTokenPrune", "Conv")
PART_OF_MODULE = {
    ".router/": "router",
    ".shared_experts.": "shared_experts",
    ".mlp.": "dense",
    "lm_head": "head",
}
PARTS = ("projections", "attention", "router", "routed_experts", "shared_experts", "dense", "head", "pruning")
TOLERANCE = 0.01


@dataclass(frozen=True)
class Run:
    """A graph as it ran: what its nodes are, the shapes of their inputs, and the values of some of those."""

    nodes: list[onnx.NodeProto]
    shapes: dict[str, Shape]
    values: dict[str, Array]
    weights: set[str]

    def inputs(self, node: onnx.NodeProto) -> list[Shape]:
        return [self.shapes[name] for name in node.input if name]


def run_graph(directory: Path, graph: str, scratch: Path, feeds: dict[str, Array], manifest: Manifest) -> Run:
    """Run a copy of a graph that also gives the shape of each input of the counted nodes."""
    model = onnx.load(directory / f"{graph}.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    watched = sorted({name for node in nodes for name in node.input if name} - set(weights))
    small = sorted({node.input[3] for node in nodes if node.op_type == "FmmSparseMoE"})
    for name in watched:
        model.graph.node.append(helper.make_node("Shape", [name], [f"shape of {name}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"shape of {name}", TensorProto.INT64, None))
    for name in small:
        model.graph.node.append(helper.make_node("Identity", [name], [f"value of {name}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"value of {name}", TensorProto.INT32, None))
    onnx.save(model, scratch / "shapes.onnx")
    shutil.copyfile(directory / f"{graph}.data", scratch / f"{graph}.data")
    options = onnxruntime.SessionOptions()
    register_native_ops(options, manifest.ops)
    session = onnxruntime.InferenceSession(scratch / "shapes.onnx", options, providers=["CPUExecutionProvider"])
    capacity = max(len(value) for value in feeds.values())
    feeds = feeds | {i.name: empty_cache(i, capacity) for i in session.get_inputs() if i.name not in feeds}
    names = [f"shape of {name}" for name in watched] + [f"value of {name}" for name in small]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    shapes = weights | {name: tuple(outputs[f"shape of {name}"]) for name in watched}
    return Run(nodes, shapes, {name: outputs[f"value of {name}"] for name in small}, set(weights))


def empty_cache(value: Any, capacity: int) -> Array:
    shape = [d if isinstance(d, int) else 1 if d == "B" else capacity for d in value.shape]
    return np.zeros(shape, np.int32 if "int32" in value.type else np.float32)


def matrix_flops(a: Shape, b: Shape, *, b_is_transposed: bool = False) -> int:
    return 2 * math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * a[-2] * a[-1] * b[-2 if b_is_transposed else -1]


def causal_pairs(rows: int, window: int | None) -> int:
    return sum(row + 1 if window is None else min(row + 1, window) for row in range(rows))


def prune_flops(shapes: list[Shape], window: int) -> int:
    """Choosing by sorting; redundancy of [V, E]: mean, product and norm; windows merged in two streams of [T, H]."""
    V, E, H, K, M = *shapes[2], shapes[0][1], shapes[6][0], shapes[8][0]
    choosing = V * math.ceil(math.log2(V)) if K < V else 0
    return choosing + (V * E * (1 + 2 + 2) if M else 0) + 2 * M * (window * H * (1 + 2) + H * (2 + 1))


def sparsevlm_flops(a: Shape, b: Shape, hidden: int) -> int:
    """Raters, distances and means of clusters, all with one neutral row that only keeps their shapes legal."""
    if a[1] != hidden:
        return 2 * a[0] * (a[1] - 1) * hidden
    is_distance = a[0] == b[1]
    return 2 * (a[0] - 1) * hidden * (b[1] - is_distance)


class Walk:
    """FLOPs by part of one run of the language model.

    Args:
        config: of the checkpoint's language model: heads, experts of a text token, window of sliding layers.
    """

    def __init__(self, run: Run, manifest: Manifest, schedule: Schedule, *, config: dict[str, Any]) -> None:
        sites = manifest.policy.sites
        self.run, self.method, self.merge_window = run, schedule.method, manifest.policy.window
        self.heads, self.top_k = config["num_attention_heads"], config["num_experts_per_tok"]
        self.window, self.hidden_size = config.get("sliding_window"), config["hidden_size"]
        # A comparison bundle scores for every method; these layers are those of the request's.
        self.scored = {sites[stage].layer for stage in schedule.sites}
        self.latent_weights: dict[str, list[Shape]] = {}
        for node in run.nodes:
            if ".self_attn/" in node.name and node.op_type == "MatMul" and node.input[1] in run.weights:
                self.latent_weights.setdefault(node.name.split("/")[0], []).append(run.shapes[node.input[1]])
        self.parts: Counter[str] = Counter()
        for node in run.nodes:
            part, flops = self.count(node)
            self.parts[part] += flops

    def count(self, node: onnx.NodeProto) -> tuple[str, int]:
        shapes = self.run.inputs(node)
        if node.op_type == "FmmSparseMoE":
            return "routed_experts", self.expert_flops(node)
        if node.op_type == "FmmTokenPrune":
            return "pruning", prune_flops(shapes, self.merge_window)
        if node.op_type == "FmmAttention":
            return "attention", self.attention_flops(node)
        if ".self_attn.watched/" in node.name:
            return "pruning", self.watched_flops(node)
        flops = matrix_flops(shapes[0], shapes[1], b_is_transposed=node.op_type == "Gemm")
        if ".self_attn" in node.name:
            return "projections", flops
        if ".token_prune.experts.router/" in node.name:
            return "pruning", flops if self.method == "fastmmoe" else 0
        for name, part in PART_OF_MODULE.items():
            if name in node.name:
                return part, flops
        assert re.fullmatch(r"(rater_weights|layers\.\d+\.token_prune)/MatMul(_\d+)?", node.name), node.name
        return "pruning", sparsevlm_flops(shapes[0], shapes[1], self.hidden_size)

    def attention_flops(self, node: onnx.NodeProto) -> int:
        T, heads, width = self.run.inputs(node)[0]
        window = self.window if int(node.name.split(".")[1]) % 2 == 0 else None
        return 2 * heads * causal_pairs(T, window) * sum(self.head_widths(node.name.split("/")[0], width))

    def watched_flops(self, node: onnx.NodeProto) -> int:
        """Scores [Nkv, group, rows, D] x [Nkv, 1, D, T] of the rows that a prune site watches."""
        block, layer = node.name.split(".watched/")[0], int(node.name.split(".")[1])
        q, k = self.run.inputs(node)[:2]
        is_own = (
            layer in self.scored
            and self.method != "random"
            and q[2] == (TEXT_AFTER if self.method == "sparsevlm" else 1)
        )
        return 2 * q[0] * q[1] * q[2] * self.head_widths(block, q[3])[0] * k[3] if is_own else 0

    def head_widths(self, block: str, width: int) -> tuple[int, int]:
        """Widths of a head's keys and values, expanded. Latent attention has [N, nope, rank] in, [N, rank, v] out."""
        if block not in self.latent_weights:
            return width, width
        into, out = self.latent_weights[block]
        return into[1] + width - into[2], out[2]

    def expert_flops(self, node: onnx.NodeProto) -> int:
        hidden, _, visual, _, _, gate_up, down = self.run.inputs(node)[:7]
        uses = (hidden[0] - visual[0]) * self.top_k + visual[0] * int(self.run.values[node.input[3]][0])
        return 2 * uses * (math.prod(gate_up[1:]) + math.prod(down[1:]))


def walk_request(
    directory: Path, scratch: Path, config: dict[str, Any], options: dict[str, Any]
) -> tuple[RequestFlops, Walk]:
    """(counted, walked) of a prompt of text, visual tokens, text; what the rows hold does not matter."""
    manifest = read_manifest(directory)
    tokens = TEXT_BEFORE + VISUAL + TEXT_AFTER
    counted = count_request(manifest, tokens=tokens, visual_tokens=VISUAL, rater_rows=TEXT_AFTER, **options)
    embeds = np.random.default_rng(3).standard_normal((tokens, config["hidden_size"]), np.float32)
    chunk = Chunk(0, embeds, np.arange(TEXT_BEFORE, TEXT_BEFORE + VISUAL, dtype=np.int32), counted.schedule)
    past = [[0]] * len(signatures.layer_groups(manifest.language_model.layers, manifest.policy.sites))
    call = Call(manifest.policy, [chunk], [0], past, alpha=manifest.policy.alpha, seed=0)
    feeds = signatures.feeds(manifest.language_model, call)
    run = run_graph(directory, "language_model", scratch, feeds, manifest)
    return counted, Walk(run, manifest, counted.schedule, config=config)


@pytest.fixture
def walked(
    bundle: Callable[..., Path],
    comparison_bundle: Callable[[str], Path],
    model_dir: Callable[[str], Path],
    tmp_path: Path,
) -> Callable[..., tuple[RequestFlops, Walk]]:
    """Function (checkpoint, options of the request) -> counted, walked."""

    def get(name: str, options: dict[str, Any]) -> tuple[RequestFlops, Walk]:
        whole = json.loads((model_dir(name) / "config.json").read_text())
        config = whole.get("text_config") or whole["language_config"]
        directory = comparison_bundle(name) if name in COMPARISON else bundle(name)
        return walk_request(directory, tmp_path, config, options)

    return get


@pytest.mark.parametrize("name", COMPARISON)
def test_count_equals_a_walk_over_the_graph(name: str, walked: Callable[..., tuple[RequestFlops, Walk]]) -> None:
    """Every part and the total, for every method, with and without pruning and expert reduction."""
    for options in REQUESTS:
        counted, walk = walked(name, options)
        for part in PARTS:
            assert getattr(counted.prefill, part) == pytest.approx(walk.parts[part], rel=TOLERANCE), (part, options)
        total = sum(flops for part, flops in walk.parts.items() if part != "pruning")
        assert counted.prefill.total == pytest.approx(total, rel=TOLERANCE), options


def test_count_equals_a_walk_over_the_graph_of_one_method(
    walked: Callable[..., tuple[RequestFlops, Walk]],
) -> None:
    """Without flags: fastmmoe at the golden prune layers. All that such a graph computes is counted."""
    counted, walk = walked(ONE_METHOD, {"retention": 0.3})
    for part in PARTS:
        assert getattr(counted.prefill, part) == pytest.approx(walk.parts[part], rel=TOLERANCE), part
    assert counted.schedule.method == "fastmmoe"
    assert counted.prefill.total + counted.prefill.pruning == pytest.approx(sum(walk.parts.values()), rel=TOLERANCE)


@pytest.mark.parametrize("name", COMPARISON)
def test_vision_count_equals_a_walk_over_the_graph(
    name: str, comparison_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    directory, tiles = comparison_bundle(name), 2
    manifest = read_manifest(directory)
    side = manifest.processor.tile_size
    feeds: dict[str, Array] = {"pixel_values": np.zeros((tiles, 3, side, side), np.float32)}
    if name.startswith("dsvl2"):
        feeds["layout_index"] = np.zeros(5, np.int32)
    run = run_graph(directory, "vision", tmp_path, feeds, manifest)
    walked = sum(vision_node_flops(node, run.inputs(node)) for node in run.nodes)
    counted = vision_flops(manifest.vision, manifest.language_model.hidden_size, tiles)
    assert counted == pytest.approx(walked, rel=TOLERANCE)


def vision_node_flops(node: onnx.NodeProto, shapes: list[Shape]) -> int:
    if node.op_type == "Conv":
        (tiles, _, height, width), kernel = shapes[0], shapes[1]
        return 2 * tiles * (height // kernel[2]) * (width // kernel[3]) * math.prod(kernel)
    if node.op_type == "Attention":
        tiles, heads, rows, width = shapes[0]
        return 2 * tiles * heads * rows * rows * 2 * width
    return matrix_flops(shapes[0], shapes[1], b_is_transposed=node.op_type == "Gemm")


COUNTS = ("--visual-tokens", "600", "--text-tokens", "50")


@pytest.fixture
def directory(comparison_bundle: Callable[[str], Path]) -> Path:
    """A comparison bundle."""
    return comparison_bundle("dsvl2-mla")


def test_flops_of_a_picture_as_json(directory: Path, golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command counts what `count_request` does for the prompt that the processor makes."""
    picture = golden / "dsvl2-inputs" / "img0_700x500.png"
    assert main(["flops", str(directory), "--image", str(picture), "--prompt", "Hi", "-r", "1.0,0.5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["visual_tokens"], result["tiles"]) == (1023, 5)
    lines = [(r["method"], r["retention"]) for r in result["requests"]]
    methods = ("fastmmoe", "random", "fastv", "sparsevlm")
    assert lines == [("none", 1.0), *((m, R) for m in methods for R in (1.0, 0.5))]
    fastv = result["requests"][lines.index(("fastv", 0.5))]
    expected = count_request(
        read_manifest(directory),
        tokens=1023 + result["text_tokens"],
        visual_tokens=1023,
        tiles=5,
        method="fastv",
        retention=0.5,
    )
    assert fastv["flops"]["attention"] == expected.prefill.attention
    assert fastv["total"] == expected.prefill.total
    assert fastv["kept_visual_tokens"] == [512]
    assert fastv["reduction_with_vision"] == expected.reduction_with_vision
    # Part of the template's text stands in front of the picture and does not rate.
    all_text: dict[str, Any] = {
        "tokens": 1023 + result["text_tokens"],
        "visual_tokens": 1023,
        "method": "sparsevlm",
        "retention": 0.5,
    }
    most = count_request(read_manifest(directory), **all_text).prefill.pruning
    assert 0 < result["requests"][lines.index(("sparsevlm", 0.5))]["flops"]["pruning"] < most


def test_flops_table_fits_a_terminal(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["flops", str(directory), "--visual-tokens", "3000", "--text-tokens", "900", "--tiles", "12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    table = lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in table] == ["method", "none"] + [
        m for m in ("fastmmoe", "random", "fastv", "sparsevlm") for _ in range(4)
    ]
    assert table[2].split()[:3] == ["fastmmoe", "1", "3000>3000>3000>3000"]
    first, total = table[0].split().index("attention") - 1, table[0].split().index("total") - 1
    for cells in (line.split() for line in table[1:]):
        assert sum(map(float, cells[first:total])) == pytest.approx(float(cells[total]), abs=0.02)


@pytest.mark.parametrize("columns", [80, 90, 100])
def test_flops_table_fits_a_narrow_terminal(
    columns: int, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts share a column, or are left out; what is counted is the same."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["flops", str(directory), *COUNTS, "--tiles", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    head, *rows = lines[lines.index("") + 1 :]
    names = head.replace("visual tokens", "visual").split()
    first, total = 3, names.index("total")
    for cells in map(str.split, rows):
        parts = [float(cell) for cell in cells[first:total]]
        assert not parts or sum(parts) == pytest.approx(float(cells[total]), abs=0.01)


def test_a_plan_is_what_the_count_says_of_its_retention(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(directory), *COUNTS, "--json", "--method", "sparsevlm"]
    assert main(["plan-retention", *arguments, "--flops-reduction", "0.3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["reduction"] >= 0.3
    assert main(["flops", *arguments, "-r", str(plan["retention"])]) == 0
    (request,) = json.loads(capsys.readouterr().out)["requests"]
    assert request.items() <= plan.items()


def test_a_plan_in_words(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-retention", str(directory), *COUNTS, "--max-tokens-kept", "150"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "retention 0.2516" in lines[-2]
    assert lines[-2].endswith("visual tokens 600>378>239>150")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["flops"], "give --image and --prompt, or --visual-tokens and --text-tokens"),
        (["flops", "--visual-tokens", "5"], "--visual-tokens and --text-tokens go together"),
        (["flops", *COUNTS, "--prompt", "a"], "take the place of --image"),
        (["flops", "--prompt", "caf\udce9"], r"--prompt 'caf\udce9': is not valid UTF-8 in this locale"),
        (["flops", "--prompt", "a", "--tiles", "2"], "--tiles goes with --visual-tokens"),
        (["flops", *COUNTS, "--tiles", "-1"], "--tiles -1: expected 0 or more"),
        (["flops", *COUNTS, "-r", "1,1.5"], "retention 1.5: expected a number in (0, 1]"),
        (["flops", *COUNTS, "-r", "much"], "'much': expected a share"),
        (["flops", *COUNTS, "--method", "fastest"], "method 'fastest': expected one of none, fastmmoe"),
        (["flops", *COUNTS, "--visual-top-k", "9"], "visual_top_k 9: expected 1 to 4"),
        (["flops", "--visual-tokens", "0", "--text-tokens", "0"], "0 tokens, 0 of them visual: expected at least one"),
        (["plan-retention", *COUNTS], "--max-tokens-kept is required"),
        (["plan-retention", *COUNTS, "--flops-reduction", "1.5"], "flops_reduction 1.5: expected a number in [0, 1)"),
        (["plan-retention", *COUNTS, "--flops-reduction", "0.99"], "no retention meets the target: method fastmmoe"),
        (["plan-retention", *COUNTS, "--max-gflops", "1", "--method", "none"], "method none prunes nothing"),
    ],
)
def test_refusals(arguments: list[str], reason: str, directory: Path, refusal: Callable[..., str]) -> None:
    command, *rest = arguments
    assert reason in refusal(main, [command, str(directory), *rest])


def test_a_method_that_the_graph_lacks(bundle: Callable[..., Path], refusal: Callable[..., str]) -> None:
    line = refusal(main, ["flops", str(bundle("dsvl2-mla")), *COUNTS, "--method", "fastv"])
    assert "method fastv: the bundle has none, fastmmoe; export with --method fastv or" in line
