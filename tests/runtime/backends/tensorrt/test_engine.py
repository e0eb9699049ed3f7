# SPDX-License-Identifier: Apache-2.0
"""Engines that are not the manifest's, and contexts that are told what has changed, and no more."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.tensorrt.api import make_logger
from fastmmoe.runtime.backends.tensorrt.engine import Context, Engine, last_error
from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.bundle.signatures import Signature
from fastmmoe.runtime.errors import BundleMismatch, RunFailed
from tests.support.toy_engines import Gpu, cache_aliases, embedding_table, engine_bytes, engine_manifest

KEY = "past_key_values.0.key"


@pytest.fixture
def manifest() -> Manifest:
    return engine_manifest()


@pytest.fixture
def read(gpu: Gpu, manifest: Manifest, tmp_path: Path) -> Callable[..., Engine]:
    """Function (graph, signature=, aliases=, data=) -> the engine of this file, checked against the signature."""

    def get(graph: str, signature: Signature | None = None, aliases: Any = None, data: bytes | None = None) -> Engine:
        trt, path = gpu.modules.trt, tmp_path / f"{graph}.engine"
        path.write_bytes(engine_bytes(trt, manifest, graph) if data is None else data)
        logger = make_logger(trt)
        if aliases is None:
            aliases = cache_aliases(manifest) if graph == "language_model" else {}
        expected = signature or signatures.signatures(manifest)[graph]
        return Engine(trt, logger, trt.Runtime(logger), path, expected, aliases)

    return get


def misfit(read: Callable[..., Engine], tmp_path: Path, what: str, graph: str, **given: Any) -> None:
    """Reading is refused, in one line that says what is wrong and what to do."""
    with pytest.raises(BundleMismatch) as refusal:
        read(graph, **given)
    path = tmp_path / f"{graph}.engine"
    assert str(refusal.value) == f"{path}: {what}; build the engines again: fastmmoe build {tmp_path}"


def changed(signature: Signature, which: str, changes: dict[str, Any]) -> Signature:
    """A signature with another tensor of that name."""

    def side(tensors: list[signatures.Tensor]) -> list[signatures.Tensor]:
        return [tensor._replace(**changes) if tensor.name == which else tensor for tensor in tensors]

    return Signature(side(signature.inputs), side(signature.outputs))


def test_engines_of_the_manifest_are_taken(read: Callable[..., Engine]) -> None:
    assert [read(graph).profiles for graph in ("vision", "embedding", "language_model")] == [1, 1, 2]


def test_scratch_memory_is_that_of_the_greatest_profile(read: Callable[..., Engine]) -> None:
    engine = read("language_model")
    sizes = (5, 9, 7)
    engine._engine = SimpleNamespace(
        num_optimization_profiles=3, get_device_memory_size_for_profile_v2=lambda profile: sizes[profile]
    )
    assert engine.scratch_bytes() == 9


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("input_ids", {"name": "tokens"}, "its inputs are others than the manifest's: input_ids, tokens"),
        ("inputs_embeds", {"name": "rows"}, "its outputs are others than the manifest's: inputs_embeds, rows"),
        ("input_ids", {"dtype": "int8"}, "input_ids is int32 [-1], expected int8 [-1]"),
        ("input_ids", {"shape": (7,)}, "input_ids is int32 [-1], expected int32 [7]"),
        ("input_ids", {"shape": ("T", 1)}, "input_ids is int32 [-1], expected int32 [-1, 1]"),
        ("inputs_embeds", {"dtype": "bfloat16"}, "inputs_embeds is float16 [-1, 8], expected bfloat16 [-1, 8]"),
    ],
)
def test_tensors_of_another_graph(
    name: str, changes: dict[str, Any], words: str, read: Callable[..., Engine], manifest: Manifest, tmp_path: Path
) -> None:
    signature = changed(signatures.signatures(manifest)["embedding"], name, changes)
    misfit(read, tmp_path, words, "embedding", signature=signature)


def test_addresses_of_other_inputs(
    read: Callable[..., Engine], manifest: Manifest, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = next(name for name, source in cache_aliases(manifest).items() if source == KEY)
    aliases = {name: source for name, source in cache_aliases(manifest).items() if name != present}
    words = f"{present} has the address of {{}}, expected {{}}"
    misfit(read, tmp_path, words.format(KEY, None), "language_model", aliases=aliases)
    data = engine_bytes(gpu.modules.trt, manifest, "language_model", aliases)
    misfit(read, tmp_path, words.format(None, KEY), "language_model", data=data)
    # TensorRT before 10.15 does not say.
    from device_double.engine import ICudaEngine

    monkeypatch.delattr(ICudaEngine, "get_aliased_input_tensor")
    assert read("language_model", data=data).profiles == 2


@pytest.mark.parametrize("place", [0, -40])
def test_a_damaged_file(place: int, read: Callable[..., Engine], gpu: Gpu, manifest: Manifest, tmp_path: Path) -> None:
    data = bytearray(engine_bytes(gpu.modules.trt, manifest, "embedding"))
    data[place] ^= 1
    with pytest.raises(BundleMismatch) as refusal:
        read("embedding", data=bytes(data))
    words = rf"{tmp_path}/embedding\.engine: tensorrt_rtx 1\.7\.1\.116 cannot read it: IRuntime.*does not match\)"
    assert re.fullmatch(rf"{words}; build the engines again: fastmmoe build {tmp_path}", str(refusal.value))


def test_no_context(read: Callable[..., Engine], gpu: Gpu) -> None:
    engine = read("embedding")
    with pytest.raises(RunFailed, match=r"embedding\.engine: no context of profile 1: .*profile 1 of 1$"):
        engine.context(1, (gpu.device.allocate(256), 256), gpu.stream)
    engine._engine = SimpleNamespace(create_execution_context=lambda _: None)
    engine.logger.errors.clear()
    with pytest.raises(RunFailed, match=r"embedding\.engine: no context of profile 0: no reason given$"):
        engine.context(0, (0, 0), gpu.stream)


@pytest.fixture
def embedding(read: Callable[..., Engine], gpu: Gpu) -> Any:
    """A context, and addresses: ids 1 and 4."""
    engine = read("embedding")
    size = engine.scratch_bytes()
    context = engine.context(0, (gpu.device.allocate(size), size), gpu.stream)
    addresses = {"input_ids": gpu.device.allocate(256), "inputs_embeds": gpu.device.allocate(512)}
    gpu.write(addresses["input_ids"], np.array([1, 4, 2], np.int32))
    return SimpleNamespace(context=context, addresses=addresses, engine=engine)


def run(embedding: Any, gpu: Gpu, tokens: int) -> Any:
    embedding.context.run({"input_ids": (tokens,)}, {"inputs_embeds": (tokens, 8)}, embedding.addresses, gpu.stream)
    return gpu.read(embedding.addresses["inputs_embeds"], 16 * tokens).view(np.float16).reshape(tokens, 8)


def test_a_run(embedding: Any, gpu: Gpu, manifest: Manifest) -> None:
    assert np.array_equal(run(embedding, gpu, 2), embedding_table(manifest)[[1, 4]])
    assert np.array_equal(run(embedding, gpu, 3), embedding_table(manifest)[[1, 4, 2]])


def is_of(call: str) -> Callable[[tuple[Any, ...]], bool]:
    """Whether a call is this one, about another tensor than input_ids."""
    return lambda told: told[0] == call and told[1] != "input_ids"


class Spy:
    """A context that writes down what it is told."""

    def __init__(self, context: Any, refuses: Callable[[tuple[Any, ...]], bool] = lambda _: False) -> None:
        self.context, self.refuses, self.told = context, refuses, list[tuple[Any, ...]]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if name not in ("get_tensor_shape", "infer_shapes"):
                self.told.append((name, *arguments))
            return False if self.refuses((name, *arguments)) else getattr(self.context, name)(*arguments)

        return call


def test_only_what_has_changed_is_set(embedding: Any, gpu: Gpu) -> None:
    spy = embedding.context._context = Spy(embedding.context._context)
    ids, rows = embedding.addresses.items()
    shape = ("set_input_shape", "input_ids", (2,))
    execute = ("execute_async_v3", gpu.stream)
    addresses = [("set_tensor_address", *ids), ("set_tensor_address", *rows)]
    run(embedding, gpu, 2)
    assert spy.told == [shape, *addresses, execute]
    spy.told.clear()
    run(embedding, gpu, 2)
    assert spy.told == [execute]
    spy.told.clear()
    run(embedding, gpu, 3)
    assert spy.told == [("set_input_shape", "input_ids", (3,)), execute]
    spy.told.clear()
    embedding.addresses["inputs_embeds"] = gpu.device.allocate(512)
    run(embedding, gpu, 3)
    assert spy.told == [("set_tensor_address", "inputs_embeds", embedding.addresses["inputs_embeds"]), execute]


def test_what_is_refused_is_said(embedding: Any, gpu: Gpu, manifest: Manifest) -> None:
    """And a refused run leaves nothing behind: the next one says everything again."""
    expected = embedding_table(manifest)[[1, 4]]
    run(embedding, gpu, 2)
    with pytest.raises(RunFailed, match=r"^embedding\.engine: TensorRT refuses input_ids of \[25\]: .*\[25\]"):
        run(embedding, gpu, 25)
    assert np.array_equal(run(embedding, gpu, 2), expected)
    for refused, words in (
        ("set_tensor_address", "refuses an address for inputs_embeds"),
        ("execute_async_v3", "cannot run it"),
    ):
        inner, before = embedding.context._context, embedding.addresses
        embedding.context._context = Spy(inner, is_of(refused))
        embedding.addresses = {name: gpu.device.allocate(512) for name in before}
        with pytest.raises(RunFailed, match=rf"^embedding\.engine: TensorRT {words}: "):
            run(embedding, gpu, 3)
        embedding.context._context, embedding.addresses = inner, before
        assert np.array_equal(run(embedding, gpu, 2), expected)
        assert tuple(inner.get_tensor_shape("input_ids")) == (2,)


def test_shapes_that_do_not_follow(embedding: Any, gpu: Gpu) -> None:
    words = r"^embedding\.engine: TensorRT makes inputs_embeds of \[2, 8\], expected \[3, 8\]: "
    for _ in range(2):
        with pytest.raises(RunFailed, match=words):
            embedding.context.run({"input_ids": (2,)}, {"inputs_embeds": (3, 8)}, embedding.addresses, gpu.stream)


def test_shapes_that_are_missing(read: Callable[..., Engine], gpu: Gpu) -> None:
    engine = read("vision")
    size = engine.scratch_bytes()
    context: Context = engine.context(0, (gpu.device.allocate(size), size), gpu.stream)
    words = r"^vision\.engine: TensorRT lacks shapes or addresses of pixel_values: no reason given$"
    with pytest.raises(RunFailed, match=words):
        context.run({"layout_index": (2,)}, {}, {}, gpu.stream)


def test_the_last_error_is_one_line() -> None:
    assert last_error(SimpleNamespace(errors=[])) == "no reason given"
    assert last_error(SimpleNamespace(errors=["first", "in\n  lines"])) == "in lines"
