# SPDX-License-Identifier: Apache-2.0
"""The torch modules of golden checkpoints, each made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmmoe.exporter.pruning.settings import MethodOption, PolicyOptions
from tests.support.torch_models import TorchModel


@pytest.fixture(scope="session")
def torch_model(checkpoint: Callable[[str], Path]) -> Callable[..., TorchModel]:
    """Function (checkpoint, prune_layers=None, method="fastmmoe") -> TorchModel, one for the whole session."""

    @cache
    def load(name: str, prune_layers: tuple[int, ...] | None = None, method: MethodOption = "fastmmoe") -> TorchModel:
        return TorchModel(checkpoint(name), PolicyOptions(prune_layers=prune_layers, method=method))

    return load


@pytest.fixture(autouse=True, scope="module")
def _no_grad() -> Any:
    with torch.no_grad():
        yield
