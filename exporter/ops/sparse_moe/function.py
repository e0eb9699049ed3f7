# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE in standard ONNX operators; the same steps as reference.py beside it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from fastmmoe.exporter.ops.building import as_float, as_int, column, filled, loop_body, rows, stage
from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE, SWIGLU_OAI_ALPHA, WEIGHT_FLOOR
from fastmmoe.exporter.ops.sparse_moe.stored_weights import StoredWeights
from fastmmoe.runtime.method.policy import PRESERVE_SUM

BIASES = ("gate_up_bias", "down_bias")
_FIRST_WEIGHT = 5
"""Place of gate_up among the inputs."""


def build_sparse_moe(
    op: OpBuilder,
    hidden_states: ir.Value,
    router_logits: ir.Value,
    visual_index: ir.Value,
    visual_top_k: ir.Value,
    correction_bias: ir.Value,
    gate_up: ir.Value,
    down: ir.Value,
    *others: ir.Value,
    attributes: dict[str, Any],
) -> ir.Value:
    """The body's output; inputs and output as in `SPARSE_MOE`."""
    names = [tensor.name for tensor in SPARSE_MOE.inputs_for(attributes)]
    weights_of = dict(zip(names[_FIRST_WEIGHT:], (gate_up, down, *others), strict=True))
    with stage(op, "route"):
        choice, scores = _score(op, router_logits, correction_bias, attributes)
        best, selected = op.TopK(choice, [attributes["top_k"]], axis=1, _outputs=["best", "selected"])  # [T, k] each
        weights = best if scores is choice else op.GatherElements(scores, selected, axis=1)
        limit = _experts_per_token(op, router_logits, visual_index, visual_top_k, attributes["top_k"])
        weights = _weigh(op, weights, limit, attributes)
    with stage(op, "experts"):
        x = as_float(op, hidden_states)
        out = _run_experts(op, x, selected, weights, weights_of, attributes)
        return op.CastLike(out, hidden_states)


def _score(
    op: OpBuilder, logits: ir.Value, correction_bias: ir.Value, attributes: dict[str, Any]
) -> tuple[ir.Value, ir.Value]:
    """Scores by which experts are chosen, and those the weights are taken from, [T, E] each."""
    if attributes["scoring_func"] == "softmax":
        scores = op.Softmax(logits, axis=1, _outputs=["scores"])
    elif attributes["scoring_func"] == "sigmoid":
        # Not Sigmoid: onnxruntime's is 0 below -18, which would tie experts that are not tied.
        scores = op.Div(1.0, op.Add(op.Exp(op.Neg(logits)), 1.0), _outputs=["scores"])
    else:
        scores = logits
    if attributes["topk_method"] == "group_limited_greedy":
        choice = _limit_to_groups(op, scores, attributes, by_sum_of_two=False)
        return choice, choice
    if attributes["topk_method"] == "noaux_tc":
        biased = op.Add(scores, correction_bias, _outputs=["biased"])
        return _limit_to_groups(op, biased, attributes, by_sum_of_two=True), scores
    return scores, scores


def _limit_to_groups(op: OpBuilder, choice: ir.Value, attributes: dict[str, Any], by_sum_of_two: bool) -> ir.Value:
    """Set the scores [T, E] outside the best topk_group groups to 0."""
    n_group, topk_group = attributes["n_group"], attributes["topk_group"]
    if topk_group >= n_group:
        return choice
    grouped = op.Reshape(choice, [0, n_group, -1], _outputs=["grouped"])  # [T, n_group, E / n_group]
    if by_sum_of_two:
        two = op.Min(op.Shape(grouped, start=2, end=3), [2])
        best_two, _ = op.TopK(grouped, two, axis=2, _outputs=["best_two", "best_two_index"])
        group_scores = op.ReduceSum(best_two, [2], keepdims=0, _outputs=["group_scores"])  # [T, n_group]
    else:
        group_scores = op.ReduceMax(grouped, [2], keepdims=0, _outputs=["group_scores"])
    _, groups = op.TopK(group_scores, [topk_group], axis=1, _outputs=["best_groups", "groups"])  # [T, topk_group]
    none, chosen = filled(op, op.Shape(group_scores), False), filled(op, op.Shape(groups), True)
    keep = op.ScatterElements(none, groups, chosen, axis=1)  # [T, n_group]
    limited = op.Where(column(op, keep), grouped, 0.0)
    return op.Reshape(limited, op.Shape(choice), _outputs=["choice"])


def _experts_per_token(
    op: OpBuilder, logits: ir.Value, visual_index: ir.Value, visual_top_k: ir.Value, top_k: int
) -> ir.Value:
    """How many of its top_k experts each token uses, [T, 1] int64."""
    text = op.Expand([top_k], rows(op, logits))  # [T]
    visual = op.Expand(as_int(op, visual_top_k), rows(op, visual_index))  # [V]
    return op.Unsqueeze(op.ScatterElements(text, visual_index, visual, axis=0), [1], _outputs=["limit"])


def _weigh(op: OpBuilder, weights: ir.Value, limit: ir.Value, attributes: dict[str, Any]) -> ir.Value:
    """Weights [T, k] of the chosen experts from their scores; 0 from column `limit` on."""
    top_k = attributes["top_k"]
    used = op.Less(list(range(top_k)), limit, _outputs=["used"])  # [T, k]
    if attributes["scoring_func"] == "topk_softmax":
        # Not Softmax over -inf: an unused expert must weigh exactly 0, else it would be run.
        shifted = op.Exp(op.Sub(weights, op.ReduceMax(weights, [1])))
        shifted = op.Where(used, shifted, 0.0)
        return op.Div(shifted, op.ReduceSum(shifted, [1]), _outputs=["weights"])
    kept = op.Where(used, weights, 0.0, _outputs=["kept"])
    if attributes["norm_topk_prob"] and top_k > 1:
        kept = op.Div(kept, op.Add(op.ReduceSum(kept, [1]), WEIGHT_FLOOR))
    elif attributes["reduction_weights"] == PRESERVE_SUM and top_k > 1:
        share = op.Div(op.ReduceSum(weights, [1]), op.Max(op.ReduceSum(kept, [1]), WEIGHT_FLOOR))  # [T, 1]
        kept = op.Where(op.Less(limit, top_k), op.Mul(kept, share), kept)
    if attributes["routed_scaling_factor"] == 1.0:
        return kept
    return op.Mul(kept, attributes["routed_scaling_factor"], _outputs=["weights"])


def _run_experts(
    op: OpBuilder,
    x: ir.Value,
    selected: ir.Value,
    weights: ir.Value,
    tensors: dict[str, ir.Value],
    attributes: dict[str, Any],
) -> ir.Value:
    """Weighted sum [T, H] over the chosen experts: a loop over those that some token uses."""
    is_used = op.Not(op.Equal(weights, 0.0), _outputs=["is_used"])  # [T, k]
    hit = op.Unique(op.Compress(selected, is_used), sorted=1, _outputs=["hit"])  # [experts in use], ascending

    def body(op: OpBuilder, i: ir.Value, more: ir.Value, out: ir.Value) -> list[ir.Value]:
        expert = op.Gather(hit, i, _outputs=["expert"])
        uses = op.And(op.Equal(selected, expert), is_used, _outputs=["uses"])  # [T, k], at most one in a row
        token, _ = op.Split(op.NonZero(uses), axis=0, num_outputs=2, _outputs=["token", "slot"])  # [1, n]
        token = op.Squeeze(token, [0])
        y = _expert(op, op.Gather(x, token), expert, tensors, attributes)  # [n, H]
        y = op.Mul(y, column(op, op.Compress(weights, uses)))
        return [op.Identity(more), op.ScatterND(out, column(op, token), y, reduction="add")]

    with stage(op, "each"):
        inputs, outputs = ("i", "more", "sum"), ("more_out", "sum_out")
        graph = loop_body(op, body, "each_expert", rank=2, inputs=inputs, outputs=outputs)
    return op.Loop(op.Size(hit), None, filled(op, op.Shape(x), 0.0), body=graph, _outputs=["sum"])


def _expert(
    op: OpBuilder, x: ir.Value, expert: ir.Value, tensors: dict[str, ir.Value], attributes: dict[str, Any]
) -> ir.Value:
    """One expert on its rows: [n, H] -> [n, H]. Only this expert's weights are converted to float32."""
    gate_up, down = (w.of_expert(op, expert, attributes) for w in _stored(op, x, tensors, attributes))
    biases = [as_float(op, op.Gather(tensors[name], expert, axis=0)) for name in BIASES if name in tensors]
    both = op.Gemm(x, gate_up, *biases[:1], transB=1)  # [n, 2I]
    gate, up = op.Split(both, axis=1, num_outputs=2, _outputs=["gate", "up"])
    if attributes["activation"] == "swiglu":
        act = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    else:
        limit = float(attributes["swiglu_limit"])
        gate, up = op.Min(gate, limit), op.Clip(up, -limit, limit)
        act = op.Mul(op.Add(up, 1.0), op.Mul(gate, op.Sigmoid(op.Mul(gate, SWIGLU_OAI_ALPHA))))
    return op.Gemm(act, down, *biases[1:], transB=1)


def _stored(
    op: OpBuilder, x: ir.Value, tensors: dict[str, ir.Value], attributes: dict[str, Any]
) -> tuple[StoredWeights, StoredWeights]:
    """gate_up and down of all experts."""
    H = op.Shape(x, start=1, end=2)
    I = attributes["expert_size"]  # noqa: E741
    if attributes[LAYOUT] != TILES and attributes["weight_format"] != "float":
        # Of integers in rows it is told by the rows of gate_up.
        I = op.Div(op.Shape(tensors["gate_up"], start=1, end=2), [2])  # noqa: E741

    def stored(name: str, rows: ir.Value | int, columns: ir.Value | int) -> StoredWeights:
        scale, zero = tensors.get(f"{name}_scale"), tensors.get(f"{name}_zero")
        return StoredWeights(tensors[name], scale, zero, name == "gate_up", rows, columns)

    return stored("gate_up", I, H), stored("down", H, I)
