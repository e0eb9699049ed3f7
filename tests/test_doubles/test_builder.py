# SPDX-License-Identifier: Apache-2.0
"""Building and reading engines of the double: by the project's own process, and what is refused as TensorRT does."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed, EngineReply
from fastmmoe.runtime.bundle.manifest import file_entry
from tests.support.attention_cases import SMALL, make_inputs
from tests.support.double import Double, Modules
from tests.support.double_engine import Runner, build, operator_model, request
from tests.support.operators import moe_attributes, moe_inputs


@pytest.fixture
def plugin(fake_plugin: Callable[..., Path]) -> Path:
    return fake_plugin(architecture=platform.machine())


def doubling() -> onnx.ModelProto:
    """y [T] = x + x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["T"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def sparse_moe() -> onnx.ModelProto:
    inputs = moe_inputs()
    hidden = inputs["hidden_states"]
    outputs: Any = {"output": (hidden.dtype, hidden.shape)}
    return operator_model("FmmSparseMoE", inputs, moe_attributes(), dynamic={}, outputs=outputs)


def logger_of(modules: Modules) -> Any:
    """A logger that keeps errors, as the project's own does."""

    class Kept(modules.trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            modules.trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= modules.trt.ILogger.Severity.ERROR:
                self.errors.append(msg)

    return Kept()


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_process_that_builds(double: Double, tmp_path: Path, plugin: Path, module: str) -> None:
    asked = request(doubling(), tmp_path, plugin, module, most=8)
    asking, reply = tmp_path / "request.json", tmp_path / "reply.json"
    asking.write_bytes(msgspec.json.encode(asked))
    command = [sys.executable, "-m", "fastmmoe.runtime.backends.tensorrt.api", str(asking), str(reply)]
    subprocess.run(command, env=double.environment(), check=True)
    entry = msgspec.json.decode(reply.read_bytes(), type=EngineReply).engine
    assert entry == file_entry(Path(asked.output))
    # The engine is whole without the files that it was made from.
    Path(asked.graph).unlink()
    modules = double.modules(module)
    runner = Runner(modules, Path(asked.output).read_bytes())
    x = np.array([1.5, -2.0, 60000.0], np.float16)
    runner.set({"x": x})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(runner.run({"y": np.float16})["y"], x + x)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_other_versions_build_and_run(double: Double, tmp_path: Path, plugin: Path, version: str) -> None:
    modules = double.modules("tensorrt", tensorrt=version)
    assert modules.trt.__version__ == version
    has_readers = hasattr(modules.trt, "IStreamReaderV2")
    assert has_readers == (version != "10.3.0") == hasattr(modules.trt.ICudaEngine, "get_aliased_input_tensor")
    data = build(modules, doubling(), tmp_path, plugin)
    assert modules.trt.Runtime(logger_of(modules)).deserialize_cuda_engine(data).num_io_tensors == 2


def test_engine_is_read_in_pieces(double: Double, tmp_path: Path, plugin: Path) -> None:
    modules = double.modules()
    data = build(modules, doubling(), tmp_path, plugin)

    class Reader(modules.trt.IStreamReaderV2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            modules.trt.IStreamReaderV2.__init__(self)
            self.at = 0

        def read(self, num_bytes: int, stream: int) -> bytes:
            piece = data[self.at : self.at + min(num_bytes, 100)]
            self.at += len(piece)
            return piece

    engine = modules.trt.Runtime(logger_of(modules)).deserialize_cuda_engine(Reader())
    assert [engine.get_tensor_name(i) for i in range(2)] == ["x", "y"]
    assert tuple(engine.get_tensor_shape("x")) == (-1,)
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("x", 0)] == [(0,), (1,), (256,)]
    assert engine.get_tensor_dtype("x") is modules.trt.DataType.HALF
    assert modules.trt.nptype(engine.get_tensor_dtype("x")) is np.float16


@pytest.mark.parametrize("damage", ["first byte", "last byte", "middle", "cut", "empty"])
def test_damaged_engine_is_none(double: Double, tmp_path: Path, plugin: Path, damage: str) -> None:
    modules, logger = double.modules(), None
    data = bytearray(build(modules, doubling(), tmp_path, plugin))
    places = {"first byte": 0, "last byte": len(data) - 2, "middle": len(data) // 2}
    if damage in places:
        data[places[damage]] ^= 1
    else:
        del data[0 if damage == "empty" else len(data) // 2 :]
    logger = logger_of(modules)
    assert modules.trt.Runtime(logger).deserialize_cuda_engine(bytes(data)) is None
    assert len(logger.errors) == 1 and "Serialization" in logger.errors[0]


def test_engine_of_another_version_or_gpu_is_none(double: Double, tmp_path: Path, plugin: Path) -> None:
    data = build(double.modules(), doubling(), tmp_path, plugin)
    for modules, says in (
        (double.modules("tensorrt"), "expecting library version 10.16.2.10 got tensorrt_rtx 1.7.1.116"),
        (double.modules(gpu="sm=87,name=Orin"), "compute capabilities [89], the device has 87"),
    ):
        logger = logger_of(modules)
        assert modules.trt.Runtime(logger).deserialize_cuda_engine(data) is None
        assert says in logger.errors[0]


def test_engine_whose_plugin_is_not_loaded_is_none(double: Double, tmp_path: Path, plugin: Path) -> None:
    modules = double.modules()
    data = build(modules, sparse_moe(), tmp_path, plugin)
    assert modules.trt.Runtime(logger_of(modules)).deserialize_cuda_engine(data) is not None
    modules = double.modules()
    logger = logger_of(modules)
    assert modules.trt.Runtime(logger).deserialize_cuda_engine(data) is None
    assert "Cannot find plugin: FmmSparseMoE" in logger.errors[0]


def test_runtime_without_gpu(double: Double, tmp_path: Path, plugin: Path) -> None:
    """It is made, as the real one is; the real one then ends the process."""
    data = build(double.modules(), doubling(), tmp_path, plugin)
    modules = double.modules(gpu="none")
    logger = logger_of(modules)
    runtime = modules.trt.Runtime(logger)
    assert len(logger.errors) == 1
    with pytest.raises(modules.control.Misuse, match="no-gpu"):
        runtime.deserialize_cuda_engine(data)


def test_builder_without_gpu(double: Double, tmp_path: Path, plugin: Path) -> None:
    assert build(double.modules(gpu="none"), doubling(), tmp_path, plugin)
    with pytest.raises(EngineBuildFailed, match="cannot start, which needs a GPU and its driver"):
        build(double.modules("tensorrt", gpu="none"), doubling(), tmp_path, plugin)


def test_library_for_another_machine_is_not_loaded(double: Double, tmp_path: Path, fake_plugin: Any) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    with pytest.raises(EngineBuildFailed, match="cannot load"):
        build(double.modules(), doubling(), tmp_path, fake_plugin(architecture=other))


def test_graph_that_is_none(double: Double, tmp_path: Path, plugin: Path) -> None:
    modules = double.modules()
    network = modules.trt.Builder(logger_of(modules)).create_network(0)
    parser = modules.trt.OnnxParser(network, logger_of(modules))
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    assert not parser.parse_from_file(str(tmp_path / "no.onnx"))
    assert parser.num_errors == 1 and "no.onnx" in parser.get_error(0).desc()


def test_operator_without_plugin_is_named(double: Double, tmp_path: Path) -> None:
    modules = double.modules()
    onnx.save(sparse_moe(), tmp_path / "moe.onnx")
    network = modules.trt.Builder(logger_of(modules)).create_network(0)
    parser = modules.trt.OnnxParser(network, logger_of(modules))
    assert not parser.parse_from_file(str(tmp_path / "moe.onnx"))
    error = parser.get_error(0)
    assert (error.node(), error.node_name(), error.node_operator()) == (0, "the_node", "FmmSparseMoE")


def test_builder_refuses_what_does_not_fit(double: Double, tmp_path: Path, plugin: Path) -> None:
    modules = double.modules()
    trt, logger = modules.trt, logger_of(modules)
    onnx.save(doubling(), tmp_path / "graph.onnx")
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert trt.OnnxParser(network, logger).parse_from_file(str(tmp_path / "graph.onnx"))
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert "no optimization profile" in logger.errors[-1]
    profile = builder.create_optimization_profile()
    with pytest.raises(ValueError, match="inconsistent"):
        profile.set_shape("x", (2,), (1,), (3,))
    config = builder.create_builder_config()
    assert config.add_optimization_profile(profile) == -1
    profile.set_shape("x", (1, 1), (1, 1), (1, 1))
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is None
    assert "the network has [-1]" in logger.errors[-1]


def test_aliases_need_their_preview_feature(double: Double, tmp_path: Path, plugin: Path) -> None:
    case = SMALL[0]
    inputs = make_inputs(case)
    tensors = ATTENTION.outputs_for(case.attributes)
    outputs: Any = {t.name: (np.float32, inputs[t.alias or "query"].shape) for t in tensors}
    onnx.save(operator_model(ATTENTION.name, inputs, case.attributes, dynamic={}, outputs=outputs), tmp_path / "a.onnx")
    modules = double.modules()
    trt, logger = modules.trt, logger_of(modules)
    assert trt.get_plugin_registry().load_library(str(plugin))
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse_from_file(str(tmp_path / "a.onnx"))
    config = builder.create_builder_config()
    assert builder.build_serialized_network(network, config) is None
    assert "ALIASED_PLUGIN_IO_10_03" in logger.errors[-1]
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    assert memoryview(builder.build_serialized_network(network, config)).nbytes > 500


def test_context_without_memory_is_none(double: Double, tmp_path: Path, plugin: Path) -> None:
    data = build(double.modules(), doubling(), tmp_path, plugin)
    modules = double.modules(memory=2048)
    logger = logger_of(modules)
    engine = modules.trt.Runtime(logger).deserialize_cuda_engine(data)
    assert engine.create_execution_context() is None
    assert "OutOfMemory" in logger.errors[-1]


def test_second_context_needs_a_profile(double: Double, tmp_path: Path, plugin: Path) -> None:
    modules = double.modules()
    runner = Runner(modules, build(modules, doubling(), tmp_path, plugin))
    second = runner.engine.create_execution_context()
    assert (runner.context.active_optimization_profile, second.active_optimization_profile) == (0, -1)
    assert not second.set_input_shape("x", (1,))
    with pytest.raises(modules.control.Misuse, match="unset-profile"):
        second.execute_async_v3(runner.stream)
    assert not second.set_optimization_profile_async(1, runner.stream)
    assert second.set_optimization_profile_async(0, runner.stream)
    assert second.infer_shapes() == ["x"] and tuple(second.get_tensor_shape("y")) == (-1,)
    assert second.set_input_shape("x", (5,))
    assert second.infer_shapes() == [] and tuple(second.get_tensor_shape("y")) == (5,)
    # Of no rows: nothing is read, but the address must be one.
    runner.set({"x": np.zeros(0, np.float16)})
    assert runner.run({"y": np.float16})["y"].shape == (0,)
    runner.context.set_tensor_address("x", 0)
    with pytest.raises(modules.control.Misuse, match="unset-address"):
        runner.context.execute_async_v3(runner.stream)
