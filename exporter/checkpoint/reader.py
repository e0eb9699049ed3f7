# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint directory (config.json + safetensors), one tensor at a time, and accounts for every tensor.

Opening reads config.json and the files' headers; the weights stay on disk until `Checkpoint.load`. Nothing is
unpickled, no code of the checkpoint runs and nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.checkpoint.config_reader import shown
from fastmmoe.exporter.checkpoint.files import CONFIG_FILE, check_directory, parse_object, read_bytes
from fastmmoe.exporter.checkpoint.tensor_names import advice, problem
from fastmmoe.exporter.checkpoint.weight_files import (
    DTYPE_BYTES,
    EXPECTED_DTYPES,
    MappedFile,
    TensorInfo,
    identity,
    read_weights,
)
from fastmmoe.runtime.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch


def _only_source(tensors: list[torch.Tensor]) -> torch.Tensor:
    (tensor,) = tensors
    return tensor


@dataclass(frozen=True)
class WeightRule:
    """A rule by which one parameter of our module is made.

    Args:
        sources: (checkpoint tensor name, expected shape) of each tensor it is made from.
        build: makes the parameter from the loaded sources, in order; default: the single source as it is.
    """

    sources: tuple[tuple[str, tuple[int, ...]], ...]
    build: Callable[[list[torch.Tensor]], torch.Tensor] = _only_source


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
        self._stored_names: dict[str, str] = {}
        self._open_files: dict[Path, MappedFile] = {}

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
        self._stored_names = {new: self._stored_names.get(name, name) for new, name in renamed.items()}
        self.tensors = {new: self.tensors[name] for new, name in renamed.items()}

    def load(self, name: str) -> torch.Tensor:
        """The tensor `name` with its stored shape and dtype (float32, float16 or bfloat16).

        The file is memory-mapped: only this tensor's pages are read, and only when its values are.

        Raises:
            UnsupportedModel: there is no such tensor, its dtype is another one, the file changed meanwhile, or the
                machine cannot map it.
        """
        info = self.tensors.get(name)
        if info is None:
            raise UnsupportedModel(f"{self.path}: no tensor {name!r} among its {len(self.tensors)} tensors")
        if info.dtype not in DTYPE_BYTES:
            raise UnsupportedModel(f"{self.path}: tensor {name!r} is {info.dtype:.20}; {EXPECTED_DTYPES}")
        if info.file not in self._open_files:
            self._open_files[info.file] = MappedFile(info.file)
        return self._open_files[info.file].load(self._stored_names.get(name, name))

    def size_bytes(self, name: str) -> int:
        """Bytes of a tensor of a dtype that is read."""
        info = self.tensors[name]
        return math.prod(info.shape) * DTYPE_BYTES[info.dtype]

    def map_files(self) -> None:
        """Map every weight file now, so that one that this machine cannot map is found before long work.

        Raises:
            UnsupportedModel: as `load` does.
        """
        for file in dict.fromkeys(info.file for info in self.tensors.values()):
            if file not in self._open_files:
                self._open_files[file] = MappedFile(file)


def build(checkpoint: Checkpoint, rule: WeightRule) -> torch.Tensor:
    """Load the sources of `rule` and make its parameter. Call `account` first: shapes are not checked again."""
    return rule.build([checkpoint.load(name) for name, _ in rule.sources])


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
