# SPDX-License-Identifier: Apache-2.0
"""policy.json: pruning settings that calibration found for one model, read by fastmmoe-export --policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from fastmmoe import __version__
from fastmmoe.exporter.pruning.settings import (
    PolicyModel,
    PolicyOptions,
    check_exponents,
    check_setting,
    check_visual_top_k,
    shown_numbers,
)
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import write_atomically
from fastmmoe.runtime.method.policy import FASTMMOE, SETTINGS, Policy
from fastmmoe.runtime.strict_json import parse_strictly

FORMAT = 1
IN_FILE = tuple(setting.name for setting in SETTINGS.values() if setting.in_file)


_Fields: Any = msgspec.defstruct(
    "_Fields",
    [
        ("format", int, FORMAT),
        ("method", Literal["fastmmoe"], FASTMMOE),
        ("prune_layers", tuple[int, ...]),
        ("stage_exponents", tuple[float, ...]),
        *((setting.name, setting.type) for setting in SETTINGS.values() if setting.in_file),
        ("visual_top_k", tuple[int, ...]),
        ("model", PolicyModel),
    ],
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
)


class PolicyFile(_Fields):  # type: ignore[misc]
    """The contents of policy.json; settings (`SETTINGS`) as in `Policy`, all of method fastmmoe.

    Attributes:
        format: number of this file's format; another one is refused.
        prune_layers: MoE layers, ascending.
        stage_exponents: one for each prune layer.
        visual_top_k: one for every MoE layer.
        model: what the settings were found for.
    """

    @staticmethod
    def of(policy: Policy, model: PolicyModel) -> PolicyFile:
        """The settings of a policy of method fastmmoe that was found for this model."""
        return PolicyFile(
            prune_layers=policy.prune_layers[FASTMMOE],
            stage_exponents=policy.stage_exponents,
            visual_top_k=policy.visual_top_k,
            model=model,
            **{name: getattr(policy, name) for name in IN_FILE},
        )

    def options(self) -> PolicyOptions:
        """Settings of an export; `dataclasses.replace` overrides single ones."""
        return PolicyOptions(
            method=self.method,
            prune_layers=self.prune_layers,
            stage_exponents=self.stage_exponents,
            visual_top_k=self.visual_top_k,
            found_for=self.model,
            **{name: getattr(self, name) for name in IN_FILE},
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
        for name in IN_FILE:
            check_setting(name, getattr(self, name), shown=name)
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
