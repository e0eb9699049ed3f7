# SPDX-License-Identifier: Apache-2.0
"""The table of the graphs' inputs: its names, its conditions, and that nothing in it is said twice or left out."""

from __future__ import annotations

from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.graph_io import Condition, Entry, Place
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.policy import Method, Policy, Site
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.manifests import toy_manifest

LENGTHS, POSITIONS = graph_io.OF_GROUP
FED = (*graph_io.OF_CALL, *graph_io.OF_SITE, LENGTHS)
WRITTEN = (*graph_io.OF_LAYER, POSITIONS)
OTHERS = (*graph_io.OUTPUTS, *graph_io.SITE_OUTPUTS, *graph_io.VISION, *graph_io.EMBEDDING)


def place(*methods: Method, site: bool = True, layers: tuple[int, ...] = (), **info: object) -> Place:
    """A graph of these methods, at a site of theirs, or in the group of these layers."""
    manifest = toy_manifest("deepseek_vl2")
    policy = msgspec.structs.replace(
        manifest.policy,
        method="all" if len(methods) > 1 else methods[0] if methods else "none",
        prune_layers=dict.fromkeys(methods, (1,)),
    )
    at = Site(layer=1, point="moe", methods=methods) if site else None
    return Place(msgspec.structs.replace(manifest.language_model, **info), policy, at, layers)


def test_no_name_is_used_twice() -> None:
    names = [entry.name for entry in chain(FED, WRITTEN, OTHERS) if entry.name != graph_io.INPUTS_EMBEDS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", [*FED, *WRITTEN, *OTHERS], ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: Entry) -> None:
    assert entry.doc.endswith(".") and "\n" not in entry.doc
    assert entry.dtype in (graph_io.F, graph_io.S) or np.dtype(entry.dtype).name == entry.dtype
    assert (entry.feed is not None) == (entry in FED)


def test_names_of_functions_are_those_of_the_entries() -> None:
    functions = (
        graph_io.keep_slots,
        graph_io.keep_offsets,
        graph_io.merge_slots,
        graph_io.merge_offsets,
        graph_io.recycle_slots,
    )
    assert [function(7) for function in functions] == [entry.name.format(s=7) for entry in graph_io.OF_SITE]
    assert [graph_io.kept_index(7)] == [entry.name.format(s=7) for entry in graph_io.SITE_OUTPUTS]
    parts = (*graph_io.KEY_VALUE, *graph_io.LATENT)
    assert graph_io.past_names(3, parts) == [entry.name.format(i=3) for entry in graph_io.OF_LAYER]
    of_group = [graph_io.past_lengths(2), graph_io.past_position_ids(2)]
    assert of_group == [entry.name.format(g=2) for entry in graph_io.OF_GROUP]


def test_what_holds_the_state_after_a_call() -> None:
    assert [graph_io.present_name(entry.name) for entry in (*WRITTEN, LENGTHS)] == [
        "present.{i}.key",
        "present.{i}.value",
        "present.{i}.latent",
        "present_position_ids.{g}",
        "present_lengths.{g}",
    ]


@pytest.mark.parametrize(
    ("size", "least"),
    [("T", 1), ("B", 1), ("C0", 1), ("C17", 1), ("tiles", 1), ("offsets", 2), ("V", 0), ("K3", 0), ("M0", 0), ("Q", 0)],
)
def test_sizes_that_may_not_be_0(size: str, least: int) -> None:
    assert graph_io.least_size(size) == least


def test_every_size_that_may_change_has_a_least_value_and_a_range() -> None:
    """A, the sequences of a call, is the length of no input; offsets are A + 1."""
    sizes = {size for entry in (*FED, *WRITTEN) for size in entry.shape if isinstance(size, str)}
    assert sizes - {"H", "Nkv", "D", "MoE layers", "sites"} == {
        *("T", "V", "B", "Q", "C{g}", "K{s}", "M{s}", "N{s}", graph_io.OFFSETS)
    }


def conditions_of(entries: tuple[Entry, ...]) -> dict[str, Condition]:
    return {entry.name: entry.only_if for entry in entries}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (place(), set()),
        (place("fastmmoe"), {"visual_offsets", "visual_top_k", "alpha", "merge_slots.{s}", "merge_offsets.{s}"}),
        (place("fastv"), {"visual_offsets", "visual_top_k", "alpha"}),
        (place("random"), {"visual_offsets", "visual_top_k", "alpha", "random_scores"}),
        (
            place("sparsevlm"),
            {"visual_offsets", "visual_top_k", "alpha", "rater_slots", "merge_slots.{s}", "recycle_slots.{s}"},
        ),
        (
            place("fastmmoe", "random"),
            {"visual_offsets", "visual_top_k", "alpha", "method", "random_scores", "merge_slots.{s}"}
            | {"merge_offsets.{s}"},
        ),
        (place("fastmmoe", site=False), {"visual_offsets", "visual_top_k", "alpha"}),
    ],
    ids=["none", "fastmmoe", "fastv", "random", "sparsevlm", "comparison", "no site"],
)
def test_inputs_that_not_every_graph_has(where: Place, names: set[str]) -> None:
    only_some = {name: one for name, one in conditions_of(FED).items() if one is not graph_io.ALWAYS}
    assert {name for name, one in only_some.items() if one.holds(where)} == names


def test_caches_go_by_the_attention() -> None:
    """Layer 0 slides: only its group has positions."""
    caches = conditions_of((*WRITTEN, LENGTHS))
    slides: dict[str, Any] = {"sliding_layers": (0,), "sliding_window": 4}
    held = [
        [name for name, one in caches.items() if one.holds(where)]
        for where in (
            place(layers=(0, 1)),
            place(layers=(0, 1), cache_parts=("latent",), cache_shape=(1, 6)),
            place(layers=(0, 1), **slides),
            place(layers=(2, 3), **slides),
        )
    ]
    keys, lengths = ["past_key_values.{i}.key", "past_key_values.{i}.value"], "past_lengths.{g}"
    assert held == [
        [*keys, lengths],
        ["past_key_values.{i}.latent", lengths],
        [*keys, "past_position_ids.{g}", lengths],
        [*keys, lengths],
    ]


def test_lengths_are_those_of_every_sequence_in_the_group() -> None:
    """Also of sequences that are not in the call."""
    manifest = toy_manifest("deepseek_vl2")
    info, policy = manifest.language_model, manifest.policy
    schedule = plan_request(policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k)
    chunk = Chunk(1, np.zeros((1, info.hidden_size)), np.arange(0), schedule)
    call = Call(policy, [chunk], [9], [[7, 9, 0], [5, 9, 0], [4, 8, 0]], alpha=0.25, seed=0)
    assert LENGTHS.feed is not None
    assert [LENGTHS.feed(call, g).tolist() for g in range(3)] == [[7, 9, 0], [5, 9, 0], [4, 8, 0]]


def test_steps_that_are_alike_differ_in_what_moves_alone() -> None:
    """Two steps of two sequences, that have in common what `Call.alike` says and nothing else."""
    manifest = toy_manifest("deepseek_vl2")
    info, policy = manifest.language_model, manifest.policy
    schedule = plan_request(policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k)
    calls = []
    for number in (3, 8):
        embeds = np.full((1, info.hidden_size), number, np.float32)
        chunks = [Chunk(sequence, embeds, np.arange(0), schedule) for sequence in (2, 0)]
        calls.append(Call(policy, chunks, [number, 4 * number], [[number] * 3] * 3, alpha=0.25, seed=number))
    assert calls[0].alike == calls[1].alike is not None
    for entry in FED:
        assert entry.feed is not None
        first, second = (entry.feed(call, 1) for call in calls)
        assert np.array_equal(first, second) != entry.moves, entry.name


def test_slots_count_by_their_length_alone() -> None:
    """Values of a call of two sequences, of which one has a picture."""
    manifest = toy_manifest("deepseek_vl2")
    info: LanguageModelInfo = manifest.language_model
    policy: Policy = manifest.policy
    schedules = [
        plan_request(policy, visual_tokens=count, moe_layers=info.moe_layers, top_k=info.top_k) for count in (20, 0)
    ]
    chunks = [
        Chunk(i, np.zeros((25, info.hidden_size)), np.arange(schedule.visual_tokens), schedule)
        for i, schedule in enumerate(schedules)
    ]
    call = Call(policy, chunks, [0, 0], [[0, 0]] * 3, alpha=0.25, seed=0)
    values = {entry.name: entry.feed(call, 1) for entry in FED if entry.feed is not None}
    kept = schedules[0].keep[1]
    assert (values["keep_slots.{s}"].shape, values["keep_slots.{s}"].any()) == ((kept,), np.False_)
    assert values["keep_offsets.{s}"].tolist() == [0, kept, kept]
    assert values["visual_offsets"].tolist() == [0, 20, 20]
    assert values["sequence_offsets"].tolist() == [0, 25, 50]
    assert values["alpha"].tolist() == [0.25] * len(policy.sites)
    assert values["visual_top_k"].tolist() == [4, 2, 2]
