# SPDX-License-Identifier: Apache-2.0
"""Enumerations and plain classes of TensorRT's Python API."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any

import numpy as np
from onnx import TensorProto


class PybindEnum(Enum):
    """What pybind11 makes of an enumeration: convertible to int, no int itself."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


class DataType(PybindEnum):
    """Element types."""

    FLOAT = 0
    HALF = 1
    BF16 = 7
    INT8 = 2
    INT32 = 3
    INT64 = 8
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    INT4 = 9

    @property
    def itemsize(self) -> float:
        """Bytes of an element."""
        return {0: 4, 1: 2, 7: 2, 2: 1, 3: 4, 8: 8, 4: 1, 5: 1, 6: 1, 9: 0.5}[self.value]


float32, float16, bfloat16, int8, int32, int64, uint8 = (
    DataType.FLOAT,
    DataType.HALF,
    DataType.BF16,
    DataType.INT8,
    DataType.INT32,
    DataType.INT64,
    DataType.UINT8,
)
ELEMENT_TYPES = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.INT64: DataType.INT64,
    TensorProto.BOOL: DataType.BOOL,
    TensorProto.UINT8: DataType.UINT8,
}
_NUMPY_TYPES = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT8: np.int8,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.BOOL: np.bool_,
    DataType.UINT8: np.uint8,
}


def nptype(trt_type: DataType) -> Any:
    """NumPy's type; TypeError for those it does not have."""
    if trt_type in _NUMPY_TYPES:
        return _NUMPY_TYPES[trt_type]
    raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")


def volume(iterable: Any) -> int:
    """Product of the sizes."""
    return int(np.prod(tuple(iterable), dtype=np.int64))


class Dims(tuple):  # type: ignore[type-arg]
    """The sizes of a tensor."""

    __slots__ = ()


class TensorIOMode(PybindEnum):
    """What a name is in an engine."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(PybindEnum):
    """Where a tensor must lie."""

    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(PybindEnum):
    """Who gives a context its scratch memory."""

    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class MemoryPoolType(PybindEnum):
    """What a limit of the builder is for."""

    WORKSPACE = 0
    TACTIC_DRAM = 4


class SeekPosition(PybindEnum):
    """What an offset counts from."""

    SET = 0
    CUR = 1
    END = 2


class ErrorCode(PybindEnum):
    """Why a parser refuses a graph."""

    INTERNAL_ERROR = 1
    MODEL_DESERIALIZE_FAILED = 3
    INVALID_GRAPH = 5
    UNSUPPORTED_NODE = 8


class _Severity(PybindEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4

    def __le__(self, other: _Severity) -> bool:
        return int(self) <= int(other)

    def __lt__(self, other: _Severity) -> bool:
        return int(self) < int(other)


class ILogger:
    """Base of loggers."""

    Severity = _Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = _Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: _Severity, msg: str) -> None:
        """Take a message."""
        raise NotImplementedError


class IProfiler:
    """Base of profilers."""

    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take the time of a layer."""
        raise NotImplementedError


class Logger(ILogger):
    """Writes messages to stderr."""

    def __init__(self, min_severity: _Severity = _Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: _Severity, msg: str) -> None:
        """Write a message that is severe enough."""
        if severity <= self.min_severity:
            print(f"[TRT] [{severity.name[0]}] {msg}", file=sys.stderr)


class IStreamReaderV2:
    """Base of what an engine is read from."""

    def __init__(self) -> None:
        pass

    def read(self, num_bytes: int, stream: int) -> bytes:
        """At most so many bytes; none at the end."""
        raise NotImplementedError

    def seek(self, offset: int, where: SeekPosition) -> bool:
        """Go to a place."""
        raise NotImplementedError


class IStreamWriter:
    """Base of what an engine is written to."""

    def __init__(self) -> None:
        pass

    def write(self, data: bytes) -> int:
        """Take bytes; how many were taken."""
        raise NotImplementedError


class IHostMemory(bytearray):
    """A serialised engine; a buffer."""

    @property
    def nbytes(self) -> int:
        """Its length."""
        return len(self)

    @property
    def dtype(self) -> DataType:
        """Of bytes."""
        return DataType.INT8
