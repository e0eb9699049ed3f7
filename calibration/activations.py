# SPDX-License-Identifier: Apache-2.0
"""Ranges of activations on calibration questions: what int8 and int4 kernels need to choose their scales.

Entries are named by the checkpoint's modules whose input they describe. Where the checkpoint has one tensor for all
experts, the expert's number follows its name. Layers that share an input have equal entries.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import save_file

from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.models.layers import SparseMoe
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.reference import activate_reference
from fastmmoe.exporter.ops.sparse_moe.torch_op import route
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.types import Array

JSON_FILE, TENSORS_FILE = "activations.json", "activations.safetensors"

# Logarithmic bins of |x| between 2^-16 and 2^16, 64 to an octave: a percentile is exact to 1.1 %.
_OCTAVES, _PER_OCTAVE = 16, 64
_BINS = 2 * _OCTAVES * _PER_OCTAVE


class ActivationRange(msgspec.Struct, frozen=True, kw_only=True):
    """Range of the input of one linear layer.

    Attributes:
        tokens: rows that were seen.
        channels: input width.
        absmax, p99_9, p99_99: greatest value and percentiles of |x| over all rows and channels; the percentiles are
            at most 1.1 % too great.
    """

    tokens: int
    channels: int
    absmax: float
    p99_9: float
    p99_99: float


class Activations(msgspec.Struct, frozen=True, kw_only=True):
    """activations.json. activations.safetensors holds the greatest |x| of every channel, float32 [channels], by name.

    Attributes:
        ranges: one for each module of the checkpoint.
        unreached: experts' modules that no token reached; they have no range.
    """

    format: int = 1
    checkpoint_identity: str
    questions: int
    ranges: dict[str, ActivationRange]
    unreached: tuple[str, ...]


class _Range:
    """What has been seen of one input."""

    def __init__(self, channels: int) -> None:
        self.tokens, self.channel_absmax = 0, np.zeros(channels, np.float32)
        self._histogram = np.zeros(_BINS, np.int64)

    def add(self, x: Array) -> None:
        """Rows [n, channels]."""
        size = np.abs(x.reshape(-1, x.shape[-1])).astype(np.float32)
        if not len(size):
            return
        self.tokens += len(size)
        self.channel_absmax = np.maximum(self.channel_absmax, size.max(axis=0))
        place = (np.log2(np.maximum(size.ravel(), 2.0**-_OCTAVES)) + _OCTAVES) * _PER_OCTAVE
        self._histogram += np.bincount(np.minimum(place.astype(np.int64), _BINS - 1), minlength=_BINS)

    def finished(self) -> ActivationRange:
        absmax = float(self.channel_absmax.max())
        return ActivationRange(
            tokens=self.tokens,
            channels=len(self.channel_absmax),
            absmax=absmax,
            p99_9=min(absmax, self._percentile(0.999)),
            p99_99=min(absmax, self._percentile(0.9999)),
        )

    def _percentile(self, share: float) -> float:
        """Upper edge of the bin where this share of the values is reached."""
        sums = self._histogram.cumsum()
        place = int(np.searchsorted(sums, share * sums[-1]))
        return float(2.0 ** ((place + 1) / _PER_OCTAVE - _OCTAVES))


class ActivationRecorder:
    """Watches the inputs of a model's linear layers while it runs; the layers are those of the vision tower, the
    projector and a decoder without pruning."""

    def __init__(self, model: TorchModel, decoder: TorchBackend) -> None:
        self._model = model
        self._modules: list[tuple[str, torch.nn.Module]] = [
            *((f"vision.{name}", module) for name, module in model.model.graphs.vision.named_modules()),
            *((f"language_model.{name}", module) for name, module in decoder.language_model.named_modules()),
        ]
        self._rules = model.model.rules
        self._ranges: dict[str, _Range] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch what runs inside."""
        handles = []
        for name, module in self._modules:
            if isinstance(module, torch.nn.Linear):
                names = _modules_of(self._rules[f"{name}.weight"])
                handles.append(module.register_forward_pre_hook(functools.partial(self._on_linear, names)))
            elif isinstance(module, SparseMoe):
                gate_up = self._expert_names(f"{name}.gate_up", module.config.num_experts)
                down = self._expert_names(f"{name}.down", module.config.num_experts)
                handles.append(module.register_forward_pre_hook(functools.partial(self._on_experts, gate_up, down)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finished(self, questions: int) -> tuple[Activations, dict[str, Array]]:
        """The contents of both files."""
        seen = {name: found for name, found in sorted(self._ranges.items()) if found.tokens}
        activations = Activations(
            checkpoint_identity=self._model.identity,
            questions=questions,
            ranges={name: found.finished() for name, found in seen.items()},
            unreached=tuple(sorted(self._ranges.keys() - seen.keys())),
        )
        return activations, {name: found.channel_absmax for name, found in seen.items()}

    def _expert_names(self, parameter: str, experts: int) -> list[tuple[str, ...]]:
        """The checkpoint's modules of each expert."""
        modules = _modules_of(self._rules[parameter])
        if len(modules) == 1:
            return [(f"{modules[0]}.{e}",) for e in range(experts)]
        each = len(modules) // experts
        return [modules[e * each : (e + 1) * each] for e in range(experts)]

    def _add(self, names: tuple[str, ...], x: Array) -> None:
        for name in names:
            self._ranges.setdefault(name, _Range(x.shape[-1])).add(x)

    def _on_linear(self, names: tuple[str, ...], _: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._add(names, args[0].numpy())

    def _on_experts(
        self,
        gate_up: list[tuple[str, ...]],
        down: list[tuple[str, ...]],
        experts: SparseMoe,
        args: tuple[torch.Tensor, ...],
    ) -> None:
        x, visual_index, visual_top_k = args
        is_visual = torch.zeros(len(x), dtype=torch.bool)
        is_visual[visual_index.long()] = True
        a: dict[str, Any] = dict(SPARSE_MOE.decode(experts.attributes))
        k = int(visual_top_k)
        selected, weights = route(experts.router_logits(x), is_visual, k, experts.correction_bias, a)
        for e in range(experts.config.num_experts):
            rows = x[((selected == e) & (weights != 0)).any(1)]
            bias = experts.gate_up_bias[e] if experts.config.expert_bias else None
            gate, up = (
                torch.nn.functional.linear(rows, experts.gate_up[e], bias)
                .numpy()
                .reshape(len(rows), 2, -1)
                .swapaxes(0, 1)
            )
            self._add(gate_up[e], rows.numpy())
            self._add(down[e], activate_reference(gate, up, a))


def write_activations(directory: Path, activations: Activations, channels: dict[str, Array]) -> None:
    """Write both files; neither is replaced before both are complete."""
    with tempfile.TemporaryDirectory(prefix=".activations.", dir=directory) as scratch:
        text = msgspec.json.format(msgspec.json.encode(activations), indent=2) + b"\n"
        files = (Path(scratch) / TENSORS_FILE, Path(scratch) / JSON_FILE)
        save_file(channels, files[0])
        files[1].write_bytes(text)
        for file in files:
            file.replace(directory / file.name)


def _modules_of(rule: WeightRule) -> tuple[str, ...]:
    return tuple(source.removesuffix(".weight") for source, _ in rule.sources)
