# SPDX-License-Identifier: Apache-2.0
"""Times of the settings on other machines and backends, from what fastmmoe bench wrote there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from fastmmoe.calibration.report.settings import FULL, Setting
from fastmmoe.runtime.bench.result import Result, Row, read_result, stored
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import FASTMMOE, METHODS


class DeviceTime(msgspec.Struct, frozen=True, kw_only=True):
    """One setting on one machine; medians in milliseconds.

    Attributes:
        first_token_ms: from the picture to the first token, preprocessing and vision included.
        without_vision_ms: the prefill alone: the picture's features are there already.
    """

    setting: Setting
    first_token_ms: float
    without_vision_ms: float


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A machine with what ran the bundle there.

    Attributes:
        file: name of the result.
        name: of the machine.
        bundle: types of the bundle that it measured, which may be another export of the model.
        is_same: it is the bundle whose accuracy was measured.
        visual_tokens: of the prompt that was measured.
        vision_ms: the pictures' share of a first token; 0 where the prompt has none.
    """

    file: str
    name: str
    provider: str
    power_mode: str | None
    bundle: str
    is_same: bool
    visual_tokens: int
    vision_ms: float
    times: tuple[DeviceTime, ...]


def read_devices(paths: Iterable[Path], manifest: Manifest) -> tuple[Device, ...]:
    """The machines that these results are of, for a report of a comparison bundle.

    Raises:
        InvalidRequest: a file is no result of fastmmoe bench, is of another model, or has no request of one sequence
            by itself.
    """
    return tuple(_device(path, read_result(path), manifest) for path in paths)


def settings_of(devices: Sequence[Device]) -> tuple[Setting, ...]:
    """The settings that they measured, for the accuracy beside."""
    return tuple(dict.fromkeys(time.setting for device in devices for time in device.times))


def _device(path: Path, result: Result, manifest: Manifest) -> Device:
    bundle, machine = result.bundle, result.machine
    if bundle.get("model") != manifest.model:
        raise InvalidRequest(f"{path}: of model {bundle.get('model')}, the report is about {manifest.model}")
    rows = [row for row in result.rows if row.batch == row.concurrency == 1]
    times = tuple(_times(rows, _method(path, result)))
    if not times:
        raise InvalidRequest(f"{path}: has no first_token and prefill of one request by itself: measure with --batch 1")
    return Device(
        file=path.name,
        name=str(machine.get("device", "unknown")),
        provider=str(machine.get("provider", "unknown")),
        power_mode=machine.get("power_mode"),
        bundle=", ".join(
            [str(bundle[name]) for name in ("target", "dtype") if name in bundle]
            + [f"{kind} {name}" for name, kind in stored(result).items() if kind != "float"]
        ),
        is_same=bundle.get("sha256") == manifest.sha256,
        visual_tokens=rows[0].visual_tokens,
        vision_ms=next((row.median_ms for row in rows if row.test == "vision"), 0.0),
        times=times,
    )


def _method(path: Path, result: Result) -> str:
    method = result.settings.get("method") or result.bundle.get("method")
    if method not in METHODS:
        raise InvalidRequest(f"{path}: method {method!r}: expected one of {', '.join(METHODS)}")
    return str(method)


def _times(rows: Sequence[Row], method: str) -> Iterator[DeviceTime]:
    """Of the prompt that was measured first, the greatest retention first."""
    first = {row.retention: row for row in reversed(rows) if row.test == "first_token"}
    prefill = {row.retention: row for row in reversed(rows) if row.test == "prefill"}
    for retention in sorted((r for r in first.keys() & prefill.keys() if r is not None), reverse=True):
        yield DeviceTime(
            setting=setting_of(method, retention),
            first_token_ms=first[retention].median_ms,
            without_vision_ms=prefill[retention].median_ms,
        )


def setting_of(method: str, retention: float) -> Setting:
    """The report's setting; fastmmoe at retention 1 is the unmodified model."""
    return Setting(FULL) if method == FULL or (method == FASTMMOE and retention == 1) else Setting(method, retention)
