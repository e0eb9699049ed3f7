# SPDX-License-Identifier: Apache-2.0
"""policy.json: pruning settings that calibration found for one model, read by fastmmoe-export --policy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from fastmmoe import __version__
from fastmmoe.exporter.pruning.settings import (
    RANGES,
    PolicyModel,
    PolicyOptions,
    check_exponents,
    check_range,
    check_visual_top_k,
    shown_numbers,
)
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import write_atomically
from fastmmoe.runtime.method.schedule import check_retention
from fastmmoe.runtime.strict_json import parse_strictly

FORMAT = 1


class PolicyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of policy.json; settings as in `Policy`, all of method fastmmoe.

    Attributes:
        format: of this file; another one is refused.
        prune_layers: MoE layers, ascending. stage_exponents: one for each. visual_top_k: one for every MoE layer.
        retention: default of requests.
        model: what the settings were found for.
    """

    format: int = FORMAT
    method: Literal["fastmmoe"] = "fastmmoe"
    prune_layers: tuple[int, ...]
    stage_exponents: tuple[float, ...]
    retention: float
    alpha: float
    merge_ratio: float
    window: int
    merge: Literal["mlerp", "mean"]
    reduction_weights: Literal["preserve_sum", "none"]
    visual_top_k: tuple[int, ...]
    model: PolicyModel

    def options(self) -> PolicyOptions:
        """Settings of an export; `dataclasses.replace` overrides single ones."""
        return PolicyOptions(
            method=self.method,
            retention=self.retention,
            prune_layers=self.prune_layers,
            stage_exponents=self.stage_exponents,
            visual_top_k=self.visual_top_k,
            alpha=self.alpha,
            merge_ratio=self.merge_ratio,
            window=self.window,
            merge=self.merge,
            reduction_weights=self.reduction_weights,
            found_for=self.model,
        )

    def check(self) -> None:
        """Raise InvalidRequest for the first value outside its range, with its key."""
        layers, moe_layers = self.prune_layers, self.model.moe_layers
        if not layers or list(layers) != sorted(set(layers)) or not set(layers) <= set(moe_layers):
            raise InvalidRequest(
                f"prune_layers {shown_numbers(layers)}: expected one or more of model.moe_layers "
                f"({shown_numbers(moe_layers)}), ascending"
            )
        check_exponents(self.stage_exponents, len(layers))
        check_retention(self.retention)
        for name in RANGES:
            check_range(name, getattr(self, name), shown=name)
        check_visual_top_k(self.visual_top_k, len(moe_layers), self.model.top_k)


def read_policy(path: Path) -> PolicyFile:
    """Read and check a policy.json.

    Raises:
        InvalidRequest: no such file, another format, unknown, missing or repeated keys, a value of another type or
            outside its range; the message names the file and the key.
    """
    try:
        document = parse_strictly(path.read_bytes())
        header = msgspec.convert(document, _Header)
        policy = msgspec.convert(document, PolicyFile) if header.format == FORMAT else None
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}; give a policy.json that calibration wrote") from error
    except ValueError as error:  # msgspec.ValidationError is one
        raise InvalidRequest(f"{path}: not a policy.json that calibration wrote: {error}") from error
    if policy is None:
        raise InvalidRequest(
            f"{path}: policy format {header.format}, fastmmoe {__version__} reads format {FORMAT}; calibrate again"
        )
    _check_in(path, policy)
    return policy


def write_policy(path: Path, policy: PolicyFile) -> None:
    """Write a policy.json, whole or not at all; an old one is replaced.

    Raises:
        InvalidRequest: settings that `read_policy` would refuse.
    """
    _check_in(path, policy)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(policy), indent=2) + b"\n")


class _Header(msgspec.Struct):
    format: int


def _check_in(path: Path, policy: PolicyFile) -> None:
    try:
        policy.check()
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from error
