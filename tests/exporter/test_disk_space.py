# SPDX-License-Identifier: Apache-2.0
"""The room that an export needs, counted before the work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter import export
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.plan import plan_export
from fastmmoe.runtime.errors import InvalidRequest


def test_a_disk_without_room_for_the_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(plan_export(ExportConfig(out=tmp_path / "out")).checkpoint, ExportConfig().policy, half_precision())
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=10_000_000))
    # 3.2 million parameters: in 16 bits, and in 32 for the twin.
    with pytest.raises(
        InvalidRequest, match=r"at least 19\.5 MB, 13\.0 MB of it for the check, and its disk has 10\.0"
    ):
        export.check_space(tmp_path / "out", model)


def half_precision() -> Any:
    import torch

    from fastmmoe.exporter.model import Precision

    return Precision(torch.float16, torch.float16)
