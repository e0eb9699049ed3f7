# SPDX-License-Identifier: Apache-2.0
"""SparseVLM's token functions against the official ones and a NumPy clustering, and traced in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from fastmmoe.exporter.graph.stitching import trace
from fastmmoe.exporter.graph.tracing import GraphInput
from fastmmoe.exporter.models.steps import Program, Take
from fastmmoe.exporter.pruning.sparsevlm import merge_clusters, rater_weights, recycle
from fastmmoe.runtime.method.schedule import sparsevlm_counts
from fastmmoe.runtime.types import Array

Inputs = dict[str, torch.Tensor]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
GOLDEN = "baselines/sparsevlm_functions.npz"
MASKS = ("rank_s13.5_b0", "rank_s9_b6", "rank_s0.8_b0", "topk192_layer2", "topk192_layer6", "topk192_layer15")
V_OFFICIAL, N_OFFICIAL, M_OFFICIAL = 576, 83, 9
KEPT_OFFICIAL = 300
H = 48


def slots(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int8)


def close(ours: torch.Tensor, theirs: Array | torch.Tensor) -> None:
    expected = torch.as_tensor(theirs).float()
    scale = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(ours.float(), expected, rtol=0, atol=TOLERANCE[ours.dtype] * scale)


def official_raters(golden_array: Callable[[str, str], Array]) -> torch.Tensor:
    embeds = [torch.from_numpy(golden_array(GOLDEN, f"{name}_embeds")[0]) for name in ("visual", "text")]
    return rater_weights(*embeds)


def test_raters_are_the_official_ones(golden_array: Callable[[str, str], Array]) -> None:
    weights = official_raters(golden_array)
    raters = golden_array(GOLDEN, "rater_idx_in_text")
    assert weights.nonzero().view(-1).tolist() == raters.tolist()
    close(weights[torch.from_numpy(raters)], np.full(len(raters), 1 / len(raters)))


def test_relation_is_the_official_one(golden_array: Callable[[str, str], Array]) -> None:
    attention = torch.from_numpy(golden_array(GOLDEN, "attn")[0]).mean(0)
    visual, text = (int(golden_array(GOLDEN, name)) for name in ("v_token_start", "text_token_start"))
    weights = official_raters(golden_array)
    rows = attention[text : text + len(weights), visual : visual + V_OFFICIAL]
    close(weights @ rows, golden_array(GOLDEN, "relation"))


@pytest.mark.parametrize("name", MASKS)
def test_kept_tokens_are_the_official_ones(golden_array: Callable[[str, str], Array], name: str) -> None:
    """Text around the visual tokens, and no recycling, which the official masks know nothing of."""
    mask, start = golden_array(GOLDEN, f"{name}_mask"), int(golden_array(GOLDEN, "v_token_start"))
    rows = torch.arange(V_OFFICIAL + start + 29).float()[:, None]
    x, kept_index, visual_index = recycle(
        rows,
        torch.from_numpy(golden_array(GOLDEN, "relation")),
        torch.arange(start, start + V_OFFICIAL, dtype=torch.int32),
        slots(int(mask.sum())),
        slots(0),
        slots(0),
    )
    expected = np.flatnonzero(np.concatenate([np.ones(start), mask, np.ones(29)]))
    assert kept_index.tolist() == x[:, 0].tolist() == expected.tolist()
    assert visual_index.tolist() == list(range(start, start + int(mask.sum())))


def test_recycled_tokens_are_the_official_ones(golden_array: Callable[[str, str], Array]) -> None:
    """As many vectors as recycled tokens: each names its own token."""
    assert sparsevlm_counts(V_OFFICIAL, KEPT_OFFICIAL) == (N_OFFICIAL, M_OFFICIAL)
    _, kept_index, _ = recycle(
        torch.randn(V_OFFICIAL, H, generator=torch.Generator().manual_seed(0)),
        torch.from_numpy(golden_array(GOLDEN, "relation")),
        torch.arange(V_OFFICIAL, dtype=torch.int32),
        slots(KEPT_OFFICIAL + N_OFFICIAL),
        slots(N_OFFICIAL),
        slots(N_OFFICIAL),
    )
    assert sorted(kept_index[KEPT_OFFICIAL:].tolist()) == sorted(golden_array(GOLDEN, "recycled_idx_in_visual"))


def test_merged_vectors_are_the_official_ones(golden_array: Callable[[str, str], Array]) -> None:
    hidden = torch.from_numpy(golden_array(GOLDEN, "hidden")[0])
    start, text = (int(golden_array(GOLDEN, name)) for name in ("v_token_start", "text_token_start"))
    x, kept_index, visual_index = recycle(
        hidden,
        torch.from_numpy(golden_array(GOLDEN, "relation")),
        torch.arange(start, text, dtype=torch.int32),
        slots(KEPT_OFFICIAL + M_OFFICIAL),
        slots(M_OFFICIAL),
        slots(N_OFFICIAL),
    )
    first = start + KEPT_OFFICIAL
    close(x[first : first + M_OFFICIAL], golden_array(GOLDEN, "merged")[0])
    recycled = golden_array(GOLDEN, "recycled_idx_in_visual") + start
    _, centres = cluster_reference(hidden.double().numpy()[recycled], M_OFFICIAL)
    assert kept_index[first : first + M_OFFICIAL].tolist() == recycled[centres].tolist()
    assert torch.equal(x[first + M_OFFICIAL :], hidden[text:])
    assert visual_index.tolist() == list(range(start, first + M_OFFICIAL))


def test_all_text_rates_where_none_stands_out() -> None:
    visual, row = torch.randn(5, H, generator=torch.Generator().manual_seed(0)), torch.ones(1, H)
    assert rater_weights(visual, row).tolist() == [1.0]
    assert rater_weights(visual, row.expand(4, H)).tolist() == [0.25] * 4
    assert rater_weights(visual[:0], torch.cat((row, -row))).tolist() == [0.5, 0.5]
    assert rater_weights(visual[:0], row[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_raters_are_chosen_in_float32(dtype: torch.dtype) -> None:
    """A rater by a hair: in half precision the two scores would be equal."""
    visual = torch.ones(3, 1, dtype=dtype)
    text = torch.tensor([[0.0], [2.0**-12]], dtype=dtype)
    weights = rater_weights(visual, text)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [0.0, 1.0]


def cluster_reference(tokens: Array, M: int) -> tuple[Array, Array]:
    """Merged vectors and centres in float64, one token after the other; the first of equally dense ones is denser."""
    d = np.sqrt(((tokens[:, None] - tokens[None]) ** 2).mean(2))
    density = np.exp(-(np.sort(d, axis=1)[:, :M] ** 2).mean(1))
    rank = np.argsort(np.argsort(-density, kind="stable"))
    delta = np.array([min(row[rank < mine], default=d.max()) for row, mine in zip(d, rank, strict=True)])
    centres = np.argsort(-density * delta, kind="stable")[:M]
    cluster = d[:, centres].argmin(1)
    cluster[centres] = np.arange(M)
    return np.stack([tokens[cluster == m].mean(0) for m in range(M)]), centres


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("N", "M"), [(1, 1), (2, 1), (2, 2), (7, 1), (7, 7), (12, 2), (40, 5), (96, 10)])
def test_clusters_equal_those_computed_token_by_token(N: int, M: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(N, H, generator=torch.Generator().manual_seed(N + M)).to(dtype)
    merged, centres = merge_clusters(tokens, slots(M))
    expected, expected_centres = cluster_reference(tokens.double().numpy(), M)
    assert (merged.dtype, centres.tolist()) == (torch.float32, expected_centres.tolist())
    close(merged, expected)


@pytest.mark.parametrize("shared", [0.0, 1e5])
def test_clusters_of_far_apart_tokens(shared: float) -> None:
    """Distances whose density is 0 in float32, and an element that all tokens share and that costs it its digits."""
    tokens = torch.randn(40, H, generator=torch.Generator().manual_seed(0)) * 15
    tokens[:, 0] = shared
    merged, centres = merge_clusters(tokens, slots(5))
    expected, expected_centres = cluster_reference(tokens.double().numpy(), 5)
    assert centres.tolist() == expected_centres.tolist()
    close(merged, expected)


@pytest.mark.parametrize("seed", range(16))
def test_tokens_that_are_each_others_nearest_are_equally_dense(seed: int) -> None:
    """With M = 2 the first of such a pair is the denser; matrix products of ten rows are not quite symmetric."""
    tokens = torch.randn(10, H, generator=torch.Generator().manual_seed(seed))
    assert merge_clusters(tokens, slots(2))[1].tolist() == cluster_reference(tokens.double().numpy(), 2)[1].tolist()


def test_of_equal_tokens_the_first_is_the_denser() -> None:
    """Two pairs: the second of each is at distance 0 of a denser one, so the centres are one of each pair."""
    pairs = torch.tensor([[1.0, 0], [1, 0], [0, 3], [0, 3]])
    merged, centres = merge_clusters(pairs, slots(2))
    assert centres.tolist() == [0, 2]
    close(merged, pairs[[0, 2]])
    assert merge_clusters(torch.ones(3, 2), slots(3))[1].tolist() == [0, 1, 2]


def test_merged_vectors_stand_behind_the_last_visual_row() -> None:
    """Two runs with text around each: rows 2, 3 and 6, 7, 8; of equal relation the smaller index is the better."""
    x = torch.arange(11.0)[:, None].expand(11, 4)
    relation = torch.tensor([0.1, 0.5, 0.5, 0.2, 0.5])
    x_out, kept_index, visual_index = recycle(
        x, relation, torch.tensor([2, 3, 6, 7, 8], dtype=torch.int32), slots(3), slots(1), slots(2)
    )
    # Kept are 3 and 6, recycled are 8 and then 7, dropped is 2.
    assert kept_index.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10]
    assert visual_index.tolist() == [2, 5, 6]
    assert (x_out.dtype, kept_index.dtype, visual_index.dtype) == (torch.float32, torch.int32, torch.int32)
    close(x_out[:, 0], torch.tensor([0, 1, 3, 4, 5, 6, 7.5, 9, 10]))


class Traced(torch.nn.Module):
    def forward(self, inputs: Inputs) -> Inputs:
        x, visual_index = inputs["x"], inputs["visual_index"]
        counts = (inputs["keep_slots"], inputs["merge_slots"], inputs["recycle_slots"])
        x_out, kept_index, visual_index_out = recycle(x, inputs["relation"], visual_index, *counts)
        weights = rater_weights(x.index_select(0, visual_index), inputs["text_embeds"])
        return {"x_out": x_out, "kept_index": kept_index, "visual_index_out": visual_index_out, "weights": weights}


@cache
def traced_session(dtype: torch.dtype) -> ort.InferenceSession:
    takes: dict[str, Take] = {
        "x": (("T", H), dtype),
        "relation": (("V",), torch.float32),
        "visual_index": (("V",), torch.int32),
        "text_embeds": (("Q", H), dtype),
        "keep_slots": (("K",), torch.int8),
        "merge_slots": (("M",), torch.int8),
        "recycle_slots": (("N",), torch.int8),
    }
    module, inputs = Traced(), [GraphInput(name, *take) for name, take in takes.items()]
    program = Program.of(module, takes, ("x_out", "kept_index", "visual_index_out", "weights"))
    model = trace(
        module, program, inputs, lambda name: pytest.fail(f"there is no weight {name}"), name="sparsevlm", opset=20
    )
    assert {node.domain for node in model.graph} == {""}
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def run_both(dtype: torch.dtype, T: int, visual: list[int], Q: int, counts: tuple[int, int, int]) -> list[Inputs]:
    """Inputs, outputs in torch, outputs in ONNX Runtime; counts K, M, N, relations with many ties."""
    generator = torch.Generator().manual_seed(T)
    inputs = {
        "x": torch.randn(T, H, generator=generator).to(dtype),
        "relation": torch.randint(0, 1 + len(visual) // 3, (len(visual),), generator=generator).float(),
        "visual_index": torch.tensor(visual, dtype=torch.int32),
        "text_embeds": torch.randn(Q, H, generator=generator).to(dtype),
    }
    inputs |= {f"{name}_slots": slots(count) for name, count in zip(("keep", "merge", "recycle"), counts, strict=True)}
    expected = Traced()(inputs)
    found = traced_session(dtype).run(list(expected), {name: value.numpy() for name, value in inputs.items()})
    return [inputs, expected, {n: torch.from_numpy(v) for n, v in zip(expected, found, strict=True)}]


TWO_RUNS = [*range(3, 13), *range(20, 35)]
CASES = {
    "ordinary": (50, list(range(3, 43)), 5, (17, 2, 8)),
    "two runs": (40, TWO_RUNS, 3, (13, 3, 5)),
    "without recycling": (40, TWO_RUNS, 3, (9, 0, 0)),
    "one vector of one token": (12, list(range(2, 9)), 3, (6, 1, 1)),
    "nothing kept as it is": (12, list(range(2, 9)), 3, (1, 1, 3)),
    "a vector for every token": (12, list(range(2, 9)), 3, (7, 4, 4)),
    "all dropped": (12, list(range(2, 9)), 3, (0, 0, 0)),
    "one visual token": (6, [2], 1, (1, 1, 1)),
    "nothing but visual tokens": (9, list(range(9)), 0, (4, 1, 2)),
    "as long as a picture": (700, list(range(11, 587)), 29, (309, 9, 83)),
}
IDENTITIES = {
    "all kept": (40, TWO_RUNS, 3, (25, 0, 0)),
    "one visual token": (6, [2], 1, (1, 0, 0)),
    "text": (6, [], 2, (0, 0, 0)),
    "decode step": (1, [], 0, (0, 0, 0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_traced_graph_equals_torch(case: str, dtype: torch.dtype) -> None:
    T, visual, Q, (K, M, N) = CASES[case]
    _, expected, found = run_both(dtype, T, visual, Q, (K, M, N))
    assert found["x_out"].shape == (T - len(visual) + K, H)
    for name in ("kept_index", "visual_index_out"):
        assert found[name].dtype == torch.int32
        assert torch.equal(found[name], expected[name]), name
    assert found["weights"].shape == (Q,)
    assert (found["x_out"].dtype, expected["x_out"].dtype) == (dtype, dtype)
    for name in ("x_out", "weights") if Q else ("x_out",):
        close(found[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", IDENTITIES)
def test_keeping_all_is_the_identity(case: str, dtype: torch.dtype) -> None:
    T, visual, Q, counts = IDENTITIES[case]
    inputs, *both = run_both(dtype, T, visual, Q, counts)
    for outputs in both:
        assert torch.equal(outputs["x_out"], inputs["x"])
        assert torch.equal(outputs["kept_index"], torch.arange(T, dtype=torch.int32))
        assert torch.equal(outputs["visual_index_out"], inputs["visual_index"])
        assert outputs["weights"].shape == (Q,)
