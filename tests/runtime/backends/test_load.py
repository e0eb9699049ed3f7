# SPDX-License-Identifier: Apache-2.0
"""Which bundles run here, and that what is loaded are the files that were verified."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.backends import cuda_provider, onnxruntime, onnxruntime_cuda
from fastmmoe.runtime.backends.load import load_backend
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.verification import Bundle, open_bundle
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.machines.targets import TARGETS
from tests.support.files import flip_bit
from tests.support.manifests import toy_manifest


def test_a_target_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, toy_manifest("deepseek_vl2", target="laptop"), {})
    with pytest.raises(BundleMismatch) as refusal:
        load_backend(bundle)
    assert str(refusal.value) == f"{tmp_path}: exported for 'laptop': this fastmmoe has {', '.join(TARGETS)}"


@pytest.mark.parametrize(
    "target, where", [("jetson-agx-orin", " on a machine of its target, jetson-agx-orin"), ("rtx", "")]
)
def test_engines_are_built_before_they_run(target: str, where: str, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, toy_manifest("deepseek_vl2", target=target), {})
    with pytest.raises(BundleMismatch) as refusal:
        load_backend(bundle)
    assert str(refusal.value) == f"{tmp_path}: has no engines yet: fastmmoe build {tmp_path}{where}"


def test_the_settings_reach_the_backend(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(onnxruntime, "OnnxRuntime", lambda *arguments: given.append(arguments))
    opened, settings = open_bundle(toy_bundle), Settings(threads=3)
    load_backend(opened, settings)
    assert given == [(toy_bundle, opened.manifest, settings)]


def test_the_cuda_provider_is_checked_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    monkeypatch.setattr(cuda_provider, "check_cuda_provider", order.append)
    monkeypatch.setattr(onnxruntime_cuda, "CudaOnnxRuntime", lambda *arguments: order.append(arguments))
    bundle = Bundle(tmp_path, toy_manifest("deepseek_vl2", target="rtx"), {})
    settings = Settings(provider="cuda")
    load_backend(bundle, settings)
    assert order == [tmp_path, (tmp_path, bundle.manifest, settings)]


def test_a_provider_that_the_bundle_is_not_for(toy_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match="provider tensorrt on a bundle of target cpu"):
        load_backend(open_bundle(toy_bundle), Settings(provider="tensorrt"))


def test_a_file_that_changes_while_it_is_loaded_is_refused(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded is closed."""
    closed: list[bool] = []

    def load(*_: object) -> SimpleNamespace:
        flip_bit(toy_bundle / "vision.onnx")
        return SimpleNamespace(close=lambda: closed.append(True))

    monkeypatch.setattr(onnxruntime, "OnnxRuntime", load)
    with pytest.raises(BundleMismatch, match=r"vision\.onnx: has changed while it was in use; try again"):
        load_backend(open_bundle(toy_bundle))
    assert closed == [True]
