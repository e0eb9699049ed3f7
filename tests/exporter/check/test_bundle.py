# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in written bundles: the check finds each by itself, and docs/export-check.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.models.layers import rotary_frequencies
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.runtime.bundle.manifest import graph_file, weights_file
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.errors import FastmmoeError
from tests.end_to_end.conftest import write_small_checkpoint
from tests.support.written_bundles import Exported, change_graph, write_bundle

# On the worker that traces the same models for the tests of end_to_end.
pytestmark = pytest.mark.xdist_group("end_to_end")

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "export-check.md"
DENSE, SLIDING, INT4 = "float experts", "a sliding window", "int4 experts"
EXPERTS = "layers.1.mlp.experts."


@pytest.fixture(scope="module")
def exported(
    checkpoint: Callable[[str], Path],
    wide_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Exported]:
    """Function (which) -> a bundle, written at the first call. Do not change it."""
    root = tmp_path_factory.mktemp("exported")
    made: dict[str, Exported] = {}

    def get(which: str) -> Exported:
        if which not in made:
            out = root / str(len(made))
            if which == SLIDING:
                made[which] = write_bundle(checkpoint("internvl-gptoss"), out, prune_layers=(1, 3))
            else:
                small = root / f"{len(made)}.model"
                write_small_checkpoint(wide_checkpoint("dsvl2-mha"), small)
                packing = Packing("int4", 32, False) if which == INT4 else None
                made[which] = write_bundle(small, out, packing=packing, prune_layers=(1, 2))
        return made[which]

    return get


def stored(one: Exported, graph: str, parameter: str, suffix: str = "") -> np.memmap[Any, Any]:
    """The bytes of a parameter in its file, to be changed."""
    name = one.bundle.parameters[graph][parameter].name + suffix
    if name in one.bundle.manifest.experts.inputs:
        place = one.bundle.manifest.experts.inputs[name]
        shape, offset, size = place.shape, place.offset, place.bytes
    else:
        model = onnx.load(str(one.directory / graph_file(graph)), load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        where = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        shape, offset, size = tuple(tensor.dims), where["offset"], where["length"]
    return np.memmap(one.directory / weights_file(graph), np.uint8, "r+", offset, (*shape, size // int(np.prod(shape))))


def two_weights_swapped(one: Exported) -> None:
    """Two weights of one layer are in each other's place."""
    q, k = (stored(one, "language_model", f"layers.1.self_attn.{name}_proj.weight") for name in "qk")
    q[:], k[:] = k.copy(), q.copy()


def experts_moved_on_by_one(one: Exported) -> None:
    """A layer's experts have their neighbours' weights."""
    for name in ("gate_up", "down"):
        stack = stored(one, "language_model", EXPERTS + name)
        stack[:] = np.roll(stack, 1, axis=0)


def two_experts_swapped(one: Exported) -> None:
    """Two of a layer's experts are in each other's place."""
    stack = stored(one, "language_model", f"{EXPERTS}down")
    stack[[1, 2]] = stack[[2, 1]]


def up_before_gate(one: Exported) -> None:
    """The rows of up stand before those of gate."""
    stack = stored(one, "language_model", f"{EXPERTS}gate_up")
    stack[:] = np.roll(stack, stack.shape[1] // 2, axis=1)


def table_moved_on_by_one(one: Exported) -> None:
    """The embedding's rows are those of the token before."""
    table = stored(one, "embedding", "weight")
    table[:] = np.roll(table, 1, axis=0)


def not_transposed(one: Exported) -> None:
    """A weight that is stored transposed stands there as the checkpoint has it."""
    name = next(n for n, i in one.bundle.parameters["vision"].items() if i.order == (1, 0))
    weight = stored(one, "vision", name)
    columns, rows, size = weight.shape
    weight[:] = weight.transpose(1, 0, 2).reshape(columns, rows, size)


def offset_of_another(one: Exported) -> None:
    """A tensor's offset in the file is that of another tensor of its size."""

    def change(model: onnx.ModelProto) -> None:
        names = [one.bundle.parameters["language_model"][f"layers.2.self_attn.{n}_proj.weight"].name for n in "kv"]
        first, second = (t for t in model.graph.initializer if t.name in names)
        del first.external_data[:]
        first.external_data.extend(second.external_data)

    change_graph(one.directory, "language_model", change)


def offset_of_an_input(one: Exported) -> None:
    """The manifest has the weights of a layer's experts where those of another are."""
    inputs = one.bundle.manifest.experts.inputs
    names = [one.bundle.parameters["language_model"][f"layers.{i}.mlp.experts.down"].name for i in (1, 2)]
    place: ExpertTensor = inputs[names[1]]
    inputs[names[0]] = place


def scale_too_large(one: Exported) -> None:
    """The integers of one expert have scales that are an eighth too large."""
    scales = stored(one, "language_model", f"{EXPERTS}gate_up", "_scale").view(np.float16)
    scales[3] *= np.float16(1.125)


def experts_of_another_layer(one: Exported) -> None:
    """A layer's node takes the experts of another."""

    def change(model: onnx.ModelProto) -> None:
        first, second = (node for node in model.graph.node if node.op_type == "FmmSparseMoE")
        for place, name in enumerate(second.input):
            if name.endswith(("gate_up", "down", "_scale")):
                second.input[place] = first.input[place]

    change_graph(one.directory, "language_model", change)


def norm_with_another_eps(one: Exported) -> None:
    """The norms divide by the root of the mean square plus 1e-5 instead of 1e-6."""

    def change(model: onnx.ModelProto) -> None:
        assert list(_scaled(model, 1e-6, 10))

    change_graph(one.directory, "language_model", change)


def _scaled(model: onnx.ModelProto, value: float, factor: float) -> Iterator[str]:
    """Multiply every constant and attribute of this value."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.data_location != onnx.TensorProto.EXTERNAL:
            values = numpy_helper.to_array(tensor)
            if values.size == 1 and np.isclose(values.ravel()[0], value, rtol=1e-5, atol=0):
                tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(np.float32), tensor.name))
                yield tensor.name
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and np.isclose(attribute.f, value, rtol=1e-5, atol=0):
                attribute.f *= factor
                yield node.name


def rope_of_another_base(one: Exported) -> None:
    """Positions turn by the angles of another base."""
    config: Any = one.model.config
    plain = rotary_frequencies(config.rope_theta, config.rope_dim).numpy().ravel()
    other = rotary_frequencies(1.5 * config.rope_theta, config.rope_dim).numpy().ravel()

    def change(model: onnx.ModelProto) -> None:
        tensors = [
            t for t in model.graph.initializer if list(t.dims)[-1:] == [len(plain)] and np.prod(t.dims) == len(plain)
        ]
        frequencies = [t for t in tensors if t.data_location != onnx.TensorProto.EXTERNAL]
        found = [t for t in frequencies if np.allclose(numpy_helper.to_array(t).ravel(), plain)]
        for tensor in found:
            tensor.CopyFrom(numpy_helper.from_array(other.reshape(tuple(tensor.dims)), tensor.name))
        assert found

    change_graph(one.directory, "language_model", change)


def stage_that_does_not_prune(one: Exported) -> None:
    """The last prune site passes its rows on."""

    def change(model: onnx.ModelProto) -> None:
        node = [node for node in model.graph.node if node.op_type == "FmmTokenPrune"][-1]
        hidden, residual, visual = node.input[0], node.input[1], node.input[4]
        place = list(model.graph.node).index(node)
        states, rest, kept, index = node.output
        model.graph.node.remove(node)
        for number, (kind, inputs, output) in enumerate(
            (
                ("Identity", [hidden], states),
                ("Identity", [residual], rest),
                ("Identity", [visual], index),
                ("Cast", ["site.rows"], kept),
            )
        ):
            attributes: dict[str, Any] = {"to": onnx.TensorProto.INT32} if kind == "Cast" else {}
            new = helper.make_node(kind, inputs, [output], name=f"layers.2/site{number}", **attributes)
            model.graph.node.insert(place + number, new)
        counted = [
            helper.make_node("Shape", [hidden], ["site.count"], name="site/Shape", start=0, end=1),
            helper.make_node("Squeeze", ["site.count"], ["site.T"], name="site/Squeeze"),
            helper.make_node("Range", ["site.zero", "site.T", "site.one"], ["site.rows"], name="site/Range"),
        ]
        for number, new in enumerate(counted):
            model.graph.node.insert(place + number, new)
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in (("site.zero", 0), ("site.one", 1))
        )

    change_graph(one.directory, "language_model", change)


def _set_attribute(one: Exported, operator: str, name: str, change: Callable[[int], int]) -> None:
    def set_all(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == operator and attribute.name == name:
                    attribute.i = change(attribute.i)

    change_graph(one.directory, "language_model", set_all)


def weights_of_experts_normed(one: Exported) -> None:
    """norm_topk_prob is the other one."""
    _set_attribute(one, "FmmSparseMoE", "norm_topk_prob", lambda value: 1 - value)


def window_one_too_short(one: Exported) -> None:
    """Sliding layers look back over one token less."""
    _set_attribute(one, "FmmAttention", "window", lambda value: value and value - 1)


def _element_of_another(one: Exported, vector: str) -> None:
    """The first node that takes an element of an input takes the second's."""

    def change(model: onnx.ModelProto) -> None:
        first, second = (node for node in model.graph.node if node.op_type == "Slice" and node.input[0] == vector)
        first.input[1], first.input[2] = second.input[1], second.input[2]

    change_graph(one.directory, "language_model", change)


def experts_per_token_of_another_layer(one: Exported) -> None:
    """Visual tokens take as many experts in a layer as are meant for the next."""
    _element_of_another(one, "visual_top_k")


def alpha_of_another_site(one: Exported) -> None:
    """A prune site weighs by the alpha of the next."""
    _element_of_another(one, "alpha")


def least_logit(one: Exported) -> None:
    """The token to go on with is that of the least logit."""

    def change(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if node.op_type == "ArgMax")
        node.op_type = "ArgMin"

    change_graph(one.directory, "language_model", change)


def body_of_other_attributes(one: Exported) -> None:
    """A node of the portable graph has another body than its attributes ask for."""
    path = one.directory / graph_file("language_model", portable=True)
    model = onnx.load(str(path), load_external_data=False)
    body = next(function for function in model.functions if function.name.startswith("FmmSparseMoE"))
    node = next(node for node in body.node if node.op_type == "TopK")
    node.attribute.append(helper.make_attribute("largest", 0))
    onnx.save(model, str(path))


MISTAKES: dict[Callable[[Exported], None], tuple[str, str]] = {
    two_weights_swapped: (DENSE, "samples of the weights"),
    experts_moved_on_by_one: (DENSE, "samples of the weights"),
    two_experts_swapped: (DENSE, "samples of the weights"),
    up_before_gate: (DENSE, "samples of the weights"),
    table_moved_on_by_one: (DENSE, "samples of the weights"),
    not_transposed: (DENSE, "samples of the weights"),
    offset_of_another: (DENSE, "samples of the weights"),
    offset_of_an_input: (INT4, "samples of the weights"),
    scale_too_large: (INT4, "samples of the weights"),
    experts_of_another_layer: (INT4, "structure"),
    norm_with_another_eps: (DENSE, "numbers"),
    rope_of_another_base: (DENSE, "samples of the weights"),
    stage_that_does_not_prune: (DENSE, "numbers"),
    weights_of_experts_normed: (DENSE, "numbers"),
    experts_per_token_of_another_layer: (DENSE, "numbers"),
    alpha_of_another_site: (DENSE, "numbers"),
    least_logit: (DENSE, "next tokens"),
    window_one_too_short: (SLIDING, "attributes"),
    body_of_other_attributes: (DENSE, "portable graph"),
}
"""Mistake -> the bundle it is planted in, and what finds it."""
SAYS = {
    "samples of the weights": r"(other values are stored than the checkpoint has|integers stand for values)",
    "structure": r"takes the weights layers\.1\.mlp\.experts\..*, expected some of layers\.2$",
    "numbers": r"(differ from torch by more than the tolerance: .* by \S+, where \S+ is allowed, and more with --atol; "
    r"|keep different tokens|near ties decide|cannot run it|expected 0 to T)",
    "next tokens": r"next_ids is \[\d+\], expected \[\d+\]",
    "attributes": r"has window \d+, expected \d+",
    "portable graph": r"has another body in the portable graph than its attributes ask for",
}


@pytest.mark.parametrize("which", [DENSE, SLIDING, INT4])
def test_bundles_without_a_mistake_pass(which: str, exported: Callable[[str], Exported], tmp_path: Path) -> None:
    lines = exported(which).check(tmp_path / "check")
    assert not [line for line in lines if "✗" in line]
    # TensorRT refuses weights in files that have a second name.
    assert not list(tmp_path.iterdir())
    methods = ("unmodified model", "fastmmoe, retention 0.5")
    assert all(
        any(f"{method}, {part}" in line for line in lines) for method in methods for part in ("prefill", "3 dec")
    )


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__)
def test_mistakes_are_found(
    plant: Callable[[Exported], None], exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    which, by = MISTAKES[plant]
    one = exported(which).copy(tmp_path / "bundle")
    inputs = one.bundle.manifest.experts.inputs
    before = dict(inputs)
    try:
        plant(one)
        with pytest.raises((CheckFailed, FastmmoeError), match=SAYS[by]):
            one.check(tmp_path / "check")
    finally:
        inputs |= before


def test_the_document_lists_them() -> None:
    table = [f"| {plant.__doc__} | {which} | {by} |" for plant, (which, by) in MISTAKES.items()]
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index("| mistake | planted in a bundle with | found by |") + 2
    assert lines[start : start + len(table) + 1] == [*table, ""]
