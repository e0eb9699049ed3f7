# SPDX-License-Identifier: Apache-2.0
"""A backend of ONNX Runtime: caches where they are, a run that fails, and weights that changed under it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, ValueInfoProto, helper

from fastmmoe.runtime.backends.base import Observed
from fastmmoe.runtime.backends.onnxruntime import BoundCaches, OnnxRuntime, _show, run_model
from fastmmoe.runtime.bundle.manifest import GRAPHS, load_manifest
from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.errors import BundleMismatch, FastmmoeError, InvalidRequest, RunFailed
from fastmmoe.runtime.types import Array
from tests.support.manifests import toy_manifest


def _session(node: str, given: str, of: int, gives: str) -> ort.InferenceSession:
    """A graph of one node on a 4 x 2 table and one input."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4, 2], np.arange(8.0))
    names = ["table", given] if node == "Gather" else [given, "table"]
    graph = helper.make_graph(
        [helper.make_node(node, names, [gives])],
        "graph",
        [helper.make_tensor_value_info(given, of, None)],
        [helper.make_tensor_value_info(gives, TensorProto.FLOAT, None)],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


PAST, PRESENT = "past_key_values.0.key", "present.0.key"


BFLOAT16 = TensorProto.BFLOAT16


def _adding_session(*others: str, caches: int = TensorProto.FLOAT) -> ort.InferenceSession:
    """A cache with x added to every row, then twice x and x itself as outputs, and more caches of the kind."""
    names = {PAST: PRESENT} | {name: name.replace("past_key_values", "present") for name in others}
    nodes = []
    for past, present in names.items():
        # ONNX Runtime adds no bfloat16.
        nodes.append(helper.make_node("Cast", [past], [f"{past}.float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", [f"{past}.float", "x"], [f"{present}.float"]))
        nodes.append(helper.make_node("Cast", [f"{present}.float"], [present], to=caches))
    nodes += [helper.make_node("Add", ["x", "x"], ["logits"]), helper.make_node("Identity", ["x"], ["kept_index.0"])]

    def values(names: Iterable[str], shape: list[str | int], of: int = TensorProto.FLOAT) -> list[ValueInfoProto]:
        return [helper.make_tensor_value_info(name, of, shape) for name in names]

    # A name of its own for each capacity: ONNX Runtime reuses buffers by it.
    of_caches = [v for past in names for v in values([past], ["B", 2, f"C.{past}", 6], caches)]
    left = [v for past in names for v in values([names[past]], ["B", 2, f"C.{past}", 6], caches)]
    inputs, outputs = [*of_caches, *values(["x"], ["T"])], [*left, *values(["logits", "kept_index.0"], ["T"])]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _floats(array: Array) -> Array:
    """What a cache holds: of bfloat16 it has the bits, the upper half of a float32's."""
    return array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize(("of", "dtype"), [(TensorProto.FLOAT, np.float32), (BFLOAT16, np.uint16)])
def test_caches_are_written_where_they_are(of: int, dtype: Any) -> None:
    """Call after call: the arrays are those that the session reads and writes; outputs of a call are its own."""
    array = np.zeros((1, 2, 4, 6), dtype)
    caches, fetched = BoundCaches(_adding_session(caches=of), {PAST: array}), ["kept_index.0", "logits"]
    found = [caches.run({"x": np.array([x], np.float32)}, fetched) for x in (1.0, 2.0, 4.0)]
    assert caches.arrays[PAST] is array and (_floats(array) == 7).all()
    assert caches.values[PAST].data_ptr() == array.ctypes.data
    assert [{name: value.tolist() for name, value in outputs.items()} for outputs in found] == [
        {"kept_index.0": [x], "logits": [2 * x]} for x in (1.0, 2.0, 4.0)
    ]


def test_calls_may_ask_for_other_outputs() -> None:
    """A conversation whose questions want tokens, then logits."""
    array = np.zeros((1, 2, 4, 6), np.float32)
    caches = BoundCaches(_adding_session(), {PAST: array})
    x = {"x": np.ones(1, np.float32)}
    wanted = [["logits"], ["kept_index.0"], ["kept_index.0", "logits"], ["logits", "kept_index.0"], ["logits"]]
    expected = {"logits": [2], "kept_index.0": [1]}
    for names in wanted:
        found = caches.run(x, names)
        assert {name: value.tolist() for name, value in found.items()} == {name: expected[name] for name in names}
    assert (array == 5).all() and caches.values[PAST].data_ptr() == array.ctypes.data


def test_feeds_may_change_their_length() -> None:
    array = np.zeros((1, 2, 4, 6), np.float32)
    caches = BoundCaches(_adding_session(), {PAST: array})
    first = caches.run({"x": np.arange(6, dtype=np.float32)}, ["logits"])["logits"]
    second = caches.run({"x": np.ones(1, np.float32)}, ["logits"])["logits"]
    assert (first.tolist(), second.tolist()) == ([0, 2, 4, 6, 8, 10], [2])
    assert array[0, 1, 3].tolist() == [1, 2, 3, 4, 5, 6]


def _count_bindings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls by which values are made for ONNX Runtime or bound, as they come."""
    made: list[str] = []

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(ort.OrtValue, "__init__")
    for name in ("bind_ortvalue_input", "bind_ortvalue_output", "bind_output", "bind_input", "bind_cpu_input"):
        count(ort.IOBinding, name)
    return made


def test_a_step_makes_and_binds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has the shapes of the call before is written where that was; nothing of the caller's is written to."""
    made, array = _count_bindings(monkeypatch), np.zeros((1, 2, 4, 6), np.float32)
    caches = BoundCaches(_adding_session(), {PAST: array})
    fed = [np.array([x], np.float32) for x in (1.0, 2.0, 4.0, 8.0)]
    fetched, found = ["logits", "kept_index.0"], []
    for x in fed:
        made.clear()
        found.append(caches.run({"x": x}, fetched))
        assert bool(made) == (x is fed[0])
    assert [outputs["logits"].tolist() for outputs in found] == [[2], [4], [8], [16]]
    assert [x.tolist() for x in fed] == [[1], [2], [4], [8]] and (array == 15).all()
    # Other shapes are bound, and so are those after them.
    for x, is_bound in ((fed[3], False), (np.ones(6, np.float32), True), (fed[0], True), (fed[1], False)):
        made.clear()
        assert caches.run({"x": x}, fetched)["logits"].tolist() == (2 * x).tolist()
        assert bool(made) == is_bound
    assert [outputs["logits"].tolist() for outputs in found] == [[2], [4], [8], [16]]


def test_an_array_that_comes_again_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = BoundCaches(_adding_session(), {PAST: np.zeros((1, 2, 4, 6), np.float32)})
    written: list[Array] = []
    feed = caches._feed

    def watch(name: str, value: Array) -> None:
        written.append(value)
        feed(name, value)

    monkeypatch.setattr(caches, "_feed", watch)
    first, second = np.ones(1, np.float32), np.array([2], np.float32)
    for x in (first, first, second, second, first):
        assert caches.run({"x": x}, ["logits"])["logits"].tolist() == (2 * x).tolist()
    assert [x.tolist() for x in written] == [[1], [2], [1]]


def test_a_call_after_one_that_failed() -> None:
    """The one that failed had other shapes or outputs, and left nothing behind."""
    caches = BoundCaches(_adding_session(), {PAST: np.zeros((1, 2, 4, 6), np.float32)})
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    for x in (one, one):
        assert caches.run({"x": x}, ["logits"])["logits"].tolist() == [2]
    for x, fetched, message in ((two, ["logits"], "broadcast"), (one, ["nothing"], "nothing")):
        for _ in range(2):
            with pytest.raises(Exception, match=message):
                caches.run({"x": x}, fetched)
        for x in (one, 3 * one):
            assert caches.run({"x": x}, ["logits"])["logits"].tolist() == (2 * x).tolist()


def test_feeds_may_be_views() -> None:
    caches = BoundCaches(_adding_session(), {PAST: np.zeros((1, 2, 4, 6), np.float32)})
    x = np.arange(12, dtype=np.float32)
    for view in (x[::2], x[1::2]):
        assert caches.run({"x": view}, ["logits"])["logits"].tolist() == (2 * view).tolist()


@pytest.mark.parametrize(("of", "cache_dtype"), [(TensorProto.FLOAT, "float32"), (BFLOAT16, "bfloat16")])
def test_greater_caches_begin_with_the_rows_there_were(of: int, cache_dtype: str) -> None:
    """Of four layers in three groups; they are bound, and what is behind the rows may be anything."""
    manifest = toy_manifest("deepseek_vl2", cache_dtype=cache_dtype)
    names = [f"past_key_values.{i}.{part}" for i in range(4) for part in ("key", "value")]
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend.manifest, backend._sessions = manifest, {"language_model": _adding_session(*names[1:], caches=of)}
    before: Any = backend.new_caches(2, (3, 2, 1))
    assert [before.arrays[name].shape for name in names[::2]] == [(2, 2, rows, 6) for rows in (3, 3, 2, 1)]
    for i, array in enumerate(before.arrays.values()):
        # 0 to 127: bfloat16 has whole numbers up to 256.
        values = ((np.arange(array.size) + i) % 128).astype(np.float32).reshape(array.shape)
        array[:] = values if of == TensorProto.FLOAT else values.view(np.uint32) >> 16
    after: Any = backend.new_caches(2, (6, 2, 4), before)
    assert {array.ctypes.data % 64 for array in after.arrays.values()} == {0}, "rows begin in the middle of a line"
    assert list(after.arrays) == list(before.arrays) == names
    assert [after.arrays[name].shape[2] for name in names[::2]] == [6, 6, 2, 4]
    old = {name: array.copy() for name, array in before.arrays.items()}
    after.run({"x": np.ones(1, np.float32)}, ["logits"])
    for name, array in after.arrays.items():
        rows = old[name].shape[2]
        assert (_floats(array)[:, :, :rows] == _floats(old[name]) + 1).all()
        assert (before.arrays[name] == old[name]).all()


def test_a_call_gives_what_is_asked_for_and_what_is_shown() -> None:
    """A value that is shown may be an input of the graph; the other outputs are not fetched."""
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend._weights, backend._shown = MappedFiles(()), {"Add.left.1": "x", "Identity.result.0": "kept_index.0"}
    backend._unasked, backend._sessions = ["kept_index.0"], dict.fromkeys(GRAPHS)
    array = np.zeros((1, 2, 4, 6), np.float32)
    caches = BoundCaches(_adding_session(), {PAST: array})
    x = np.array([1, 9, 2], np.float32)[::2]
    outputs = backend.extend({"x": x[:1]}, caches, ["logits"])
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "logits": [2],
        "Add.left.1": [1],
        "Identity.result.0": [1],
    }
    with pytest.raises(RunFailed, match=r"^language_model: onnxruntime [\d.]+ cannot run it: [^\n]+$"):
        backend.extend({"x": x}, caches, ["logits"])


def _backend(**sessions: ort.InferenceSession) -> OnnxRuntime:
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend._sessions, backend._weights = sessions, MappedFiles(())
    backend._embedding, backend._embedding_lock = None, threading.Lock()
    return backend


def test_an_operator_that_refuses_its_inputs() -> None:
    backend = _backend(
        embedding=_session("Gather", "input_ids", TensorProto.INT32, "inputs_embeds"),
        vision=_session("MatMul", "pixel_values", TensorProto.FLOAT, "image_features"),
    )
    # Each has its rows to itself.
    found = [backend.embed(np.array(ids)) for ids in ([3], [0], [2, 1], [1, 3])]
    assert [rows.tolist() for rows in found] == [[[6, 7]], [[0, 1]], [[4, 5], [2, 3]], [[2, 3], [6, 7]]]
    with pytest.raises(
        RunFailed, match=r"^embedding: onnxruntime [\d.]+ cannot run it: [^\n]*out of data bounds[^\n]*$"
    ):
        backend.embed(np.array([9]))
    for pixels in (np.ones((1, 3), np.float32), np.ones((1, 4), np.int64)):
        with pytest.raises(FastmmoeError, match=r"^vision: onnxruntime [^\n]+$"):
            backend.image_features({"pixel_values": pixels})


@pytest.mark.parametrize("call", ["embed", "image_features", "extend", "new_caches"])
def test_what_is_asked_of_a_closed_model_is_refused(call: str) -> None:
    backend = _backend(embedding=_session("Gather", "input_ids", TensorProto.INT32, "inputs_embeds"))
    backend.manifest = toy_manifest("deepseek_vl2")
    backend.close()
    no_caches: Any = None
    calls: dict[str, Callable[[], object]] = {
        "embed": lambda: backend.embed(np.zeros(1)),
        "image_features": lambda: backend.image_features({}),
        "extend": lambda: backend.extend({}, no_caches, []),
        "new_caches": lambda: backend.new_caches(1, (1, 1, 1)),
    }
    with pytest.raises(InvalidRequest, match=r"^the model has been closed: load the bundle again$"):
        calls[call]()


@pytest.mark.parametrize(
    ("graph", "call"), [("embedding", "embed"), ("vision", "image_features"), ("language_model", "extend")]
)
def test_files_are_looked_at_before_they_are_read(graph: str, call: str, tmp_path: Path) -> None:
    """Reading behind the new end of a mapped file that has become shorter ends the process."""
    paths = {name: tmp_path / f"{name}.data" for name in GRAPHS}
    for path in paths.values():
        path.write_bytes(bytes(100))
    backend = OnnxRuntime.__new__(OnnxRuntime)
    backend._weights, backend._sessions = MappedFiles(paths.values()), dict.fromkeys(GRAPHS)
    os.truncate(paths[graph], 10)
    no_caches: Any = None
    calls: dict[str, Callable[[], object]] = {
        "embed": lambda: backend.embed(np.zeros(1)),
        "image_features": lambda: backend.image_features({}),
        "extend": lambda: backend.extend({}, no_caches, []),
    }
    with pytest.raises(BundleMismatch, match=f"{graph}.data: has been written to or renamed since"):
        calls[call]()


def test_a_graph_that_cannot_be_loaded(toy_bundle: Path) -> None:
    """The toy bundle's are its files' names."""
    words = rf"^{toy_bundle}/vision\.onnx: onnxruntime [\d.]+ cannot load it: [^\n\\]+$"
    with pytest.raises(BundleMismatch, match=words):
        OnnxRuntime(toy_bundle, load_manifest(toy_bundle), graphs=("vision",))


def test_what_is_observed_becomes_an_output() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["c", "a"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xkb"]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    shown = _show(graph, Observed("Mul", {"left": 0, "right": 1}, {"product": 0}))
    assert shown == {
        "Mul.left.0": "x",
        "Mul.right.0": "k",
        "Mul.product.0": "a",
        "Mul.left.1": "c",
        "Mul.right.1": "a",
        "Mul.product.1": "y",
    }
    # Each once, and no input: those are given already.
    assert [output.name for output in graph.output] == ["y", "a", "c"]


def model_of_a_cast() -> bytes:
    """bfloat16 x -> float32 y."""
    types = {"x": TensorProto.BFLOAT16, "y": TensorProto.FLOAT}
    x, y = (helper.make_tensor_value_info(name, of, ["n"]) for name, of in types.items())
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found: bytes = model.SerializeToString()
    return found


def test_a_model_by_itself() -> None:
    """Bits of bfloat16 come as uint16."""
    (found,) = run_model(model_of_a_cast(), {"x": np.array([0x3FC0, 0xC000], np.uint16)})
    np.testing.assert_array_equal(found, np.array([1.5, -2.0], np.float32))


def test_a_model_that_cannot_be_run() -> None:
    with pytest.raises(RunFailed, match=r"^a model: onnxruntime"):
        run_model(model_of_a_cast(), {"x": np.zeros(2, np.float32)})
