# SPDX-License-Identifier: Apache-2.0
"""Results of fastmmoe bench as machines of a report: what is taken of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.calibration.report.devices import read_devices, setting_of, settings_of
from fastmmoe.calibration.report.settings import Setting
from fastmmoe.runtime.bench.result import Row
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.bench_results import BUNDLE, make_result, make_row
from tests.support.manifests import toy_manifest

TIMES = {"first_token": 30.0, "prefill": 10.0}


@pytest.fixture
def manifest() -> Manifest:
    return msgspec.structs.replace(toy_manifest("deepseek_vl2"), model="demo", sha256="ab" * 32)


def rows(*retentions: float, **changed: Any) -> list[Row]:
    """First token and prefill at each retention, the less of it the faster."""
    return [
        make_row((ms * retention,) * 3, test=test, retention=retention, **changed)
        for retention in retentions
        for test, ms in TIMES.items()
    ]


def written(path: Path, *of: Row, **changed: Any) -> Path:
    bundle = BUNDLE | {"method": "fastmmoe"}
    path.write_bytes(msgspec.json.encode(make_result(*of, **{"bundle": bundle} | changed)))
    return path


def test_a_machine_of_each_file(manifest: Manifest, tmp_path: Path) -> None:
    """Packed calls, several requests at once and other prompts behind the first are left out."""
    vision = make_row((20.0,) * 3, test="vision", retention=None)
    slower = [make_row((999.0,) * 3, test=row.test, retention=row.retention, tokens=99) for row in rows(0.5, 1.0)]
    others = [msgspec.structs.replace(row, **{name: 2}) for name in ("batch", "concurrency") for row in slower]
    of = [vision, *others, *rows(0.25, 1.0, 0.5), *slower]
    (found,) = read_devices([written(tmp_path / "a.json", *of)], manifest)
    assert (found.file, found.name, found.provider, found.is_same) == ("a.json", "A processor", "cpu", True)
    assert (found.bundle, found.visual_tokens, found.vision_ms) == ("cpu, fp32", 64, 20.0)
    assert [(t.setting, t.first_token_ms, t.without_vision_ms) for t in found.times] == [
        (Setting("none"), 30.0, 10.0),
        (Setting("fastmmoe", 0.5), 15.0, 5.0),
        (Setting("fastmmoe", 0.25), 7.5, 2.5),
    ]
    assert settings_of([found, found]) == tuple(time.setting for time in found.times)


def test_another_export_of_the_model_is_named(manifest: Manifest, tmp_path: Path) -> None:
    bundle = {"model": "demo", "target": "jetson-orin", "dtype": "fp16", "experts": "int4", "sha256": "cd" * 32}
    path = written(tmp_path / "b.json", *rows(0.5), bundle=bundle | {"method": "fastv"})
    (found,) = read_devices([path], manifest)
    assert (found.bundle, found.is_same) == ("jetson-orin, fp16, int4 experts", False)
    linears = {"dense": "int8", "head": "int8", "vision": "float"}
    path = written(tmp_path / "c.json", *rows(0.5), bundle=bundle | {"method": "fastv", "linears": linears})
    (other,) = read_devices([path], manifest)
    assert other.bundle == "jetson-orin, fp16, int4 experts, int8 dense, int8 head"
    assert found.times[0].setting == Setting("fastv", 0.5) and found.vision_ms == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bundle": {"model": "other", "sha256": "0"}}, "of model other, the report is about demo"),
        ({"bundle": {"model": "demo", "sha256": "0", "method": "magic"}}, "method 'magic': expected one of none,"),
        ({"rows": ()}, "has no first_token and prefill of one request by itself"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], words: str, manifest: Manifest, tmp_path: Path) -> None:
    path = written(tmp_path / "c.json", *rows(0.5), **changed)
    with pytest.raises(InvalidRequest) as refusal:
        read_devices([path], manifest)
    assert str(refusal.value).startswith(f"{path}: {words}")


def test_settings_by_method() -> None:
    assert setting_of("fastmmoe", 1.0) == setting_of("none", 1.0) == Setting("none")
    assert setting_of("random", 0.5) == Setting("random", 0.5)
