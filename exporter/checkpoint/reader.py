# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint directory (config.json + safetensors), one tensor at a time, and accounts for every tensor.

Opening reads config.json and the files' headers; the weights stay on disk until `Checkpoint.load`. Nothing is
unpickled, no code of the checkpoint runs and nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.checkpoint.config_reader import shown
from fastmmoe.exporter.checkpoint.files import CONFIG_FILE, check_directory, parse_object, read_bytes
from fastmmoe.exporter.checkpoint.open_file import OpenFile
from fastmmoe.exporter.checkpoint.tensor_names import advice, problem
from fastmmoe.exporter.checkpoint.weight_files import (
    DTYPE_BYTES,
    EXPECTED_DTYPES,
    FileState,
    TensorInfo,
    identity,
    read_weights,
)
from fastmmoe.runtime.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class WeightRule:
    """A rule by which one parameter of our module is made: pieces of stored tensors, one after the other.

    Attributes:
        sources: (checkpoint tensor name, expected shape) of each tensor it is made from, in the parameter's order.
        shape: the parameter's; () = that of the single source.
        views: the pieces that each source gives, in order. A view moves no value: it slices, transposes or splits
            axes. All pieces have one shape but for the first axis, along which they follow each other.
    """

    sources: tuple[tuple[str, tuple[int, ...]], ...]
    shape: tuple[int, ...] = ()
    views: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (_whole,)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.shape or self.sources[0][1]

    def pieces(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The pieces of the sources, in the parameter's order."""
        return (view(tensor) for tensor in tensors for view in self.views)

    def build(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """The parameter, of the loaded sources; it shares the memory of a single piece."""
        import torch

        pieces = list(self.pieces(tensors))
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.reshape(self.parameter_shape)


class Checkpoint:
    """A checkpoint directory, open for reading.

    The weights are model.safetensors, or the shards named by model.safetensors.index.json. Where both are there,
    the single file is read (as transformers does) if it lists the same tensors, shapes and dtypes as the shards;
    otherwise the directory contradicts itself and is refused. Safetensors files that the index does not name are
    not read. Shards and the single file may be symbolic links.

    Attributes:
        path: the directory.
        config: the parsed config.json.
        tensors: every tensor by name, in the order of the files.
        files: the weight files, as they were when their headers were read.
        identity: SHA-256 (hexadecimal) over the bytes of config.json and, for each weight file in the order of the
            names, its name, its size and its header (names, shapes, dtypes, offsets). It is cheap because the
            weights themselves are not read: checkpoints that differ in weight values alone share it.

    Raises:
        UnsupportedModel: the directory, config.json or a weight file is missing, damaged or contradictory.
    """

    def __init__(self, model_dir: Path) -> None:
        self.path = Path(model_dir)
        check_directory(self.path)
        config_bytes = read_bytes(self.path / CONFIG_FILE)
        self.config: dict[str, Any] = parse_object(config_bytes, self.path / CONFIG_FILE)
        headers = read_weights(self.path)
        self.tensors: dict[str, TensorInfo] = {n: t for header in headers for n, t in header.tensors.items()}
        self.identity = identity(config_bytes, headers)
        self.files: dict[Path, FileState] = {header.file: header.state for header in headers}
        self._open_files: dict[Path, OpenFile] = {}

    def rename_prefixes(self, prefixes: dict[str, str]) -> None:
        """Give the tensors whose names start with a key of `prefixes` that key's value instead.

        Raises:
            UnsupportedModel: two tensors would have one name.
        """
        renamed: dict[str, str] = {}
        for name in self.tensors:
            old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
            new = prefixes.get(old, "") + name.removeprefix(old)
            if new in renamed:
                raise UnsupportedModel(
                    f"{self.path}: tensors {renamed[new]!r} and {name!r} are both {new!r}: keep one of the two"
                )
            renamed[new] = name
        self.tensors = {new: self.tensors[name] for new, name in renamed.items()}

    def load(self, name: str) -> torch.Tensor:
        """The tensor `name` with its stored shape and dtype (float32, float16 or bfloat16), not to be written to.

        The file is memory-mapped: only this tensor's pages are read, and only when its values are.

        Raises:
            UnsupportedModel: there is no such tensor, its dtype is another one, or the file changed meanwhile.
            MemoryError: the process may not map a file of this size (ulimit -v).
        """
        info = self.info(name)
        return self.open(info).mapped(info)

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor that can be read.

        Raises:
            UnsupportedModel: there is no such tensor, or its dtype is another one.
        """
        info = self.tensors.get(name)
        if info is None:
            raise UnsupportedModel(f"{self.path}: no tensor {name!r} among its {len(self.tensors)} tensors")
        if info.dtype not in DTYPE_BYTES:
            raise UnsupportedModel(f"{self.path}: tensor {name!r} is {info.dtype:.20}; {EXPECTED_DTYPES}")
        return info

    def open(self, info: TensorInfo) -> OpenFile:
        """The file of a tensor, as its header was read.

        Raises:
            UnsupportedModel: it changed meanwhile.
        """
        if info.file not in self._open_files:
            self._open_files[info.file] = OpenFile(info.file, info.state)
        self._open_files[info.file].check()
        return self._open_files[info.file]

    def size_bytes(self, name: str) -> int:
        """Bytes of a tensor of a dtype that is read."""
        info = self.tensors[name]
        return math.prod(info.shape) * DTYPE_BYTES[info.dtype]


def build(checkpoint: Checkpoint, rule: WeightRule) -> torch.Tensor:
    """Load the sources of `rule` and make its parameter. Call `account` first: shapes are not checked again."""
    return rule.build(checkpoint.load(name) for name, _ in rule.sources)


def account(checkpoint: Checkpoint, rules: dict[str, WeightRule], drop: tuple[str, ...]) -> None:
    """Check that the checkpoint's tensors are exactly those the rules use.

    Args:
        rules: parameter name -> rule. One tensor may serve several rules.
        drop: patterns (as in fnmatch, case-sensitive) of tensors that may be there and are not used, for example
            "vision.attn_pool.*".
    Raises:
        UnsupportedModel: tensors are missing, unexpected, of another shape or of a dtype that is not read; one
            message on one line names them all, runs of numbers as "experts.{0..63}", with the count of each group.
    """
    sources = [source for rule in rules.values() for source in rule.sources]
    names = {name for name, _ in sources}
    missing = [name for name in sorted(names) if name not in checkpoint.tensors]
    unused = [name for name in checkpoint.tensors if name not in names]
    unexpected = [name for name in unused if not any(fnmatchcase(name, pattern) for pattern in drop)]
    shapes: dict[str, list[str]] = {}
    dtypes: dict[str, list[str]] = {}
    for name, expected in dict.fromkeys(sources):
        info = checkpoint.tensors.get(name)
        if info is None:
            continue
        if info.shape != expected:
            shapes.setdefault(f" is {shown(list(info.shape))}, expected {list(expected)}", []).append(name)
        if info.dtype not in DTYPE_BYTES:
            dtypes.setdefault(f" is {info.dtype:.20}", []).append(name)
    problems = [
        problem("missing", {"": missing}),
        problem("unexpected", {"": unexpected}),
        problem("of another shape", shapes),
        problem(f"of a dtype that is not read ({EXPECTED_DTYPES})", dtypes),
    ]
    if any(problems):
        found = "; ".join(clause for clause in problems if clause)
        what_to_do = advice(unexpected, (checkpoint.tensors[name].dtype for names in dtypes.values() for name in names))
        raise UnsupportedModel(f"{checkpoint.path}: the weights do not fit {CONFIG_FILE}: {found}; {what_to_do}")
