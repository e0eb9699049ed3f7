# SPDX-License-Identifier: Apache-2.0
"""How an instance is loaded; requests: tests/end_to_end/test_triton.py."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.interop import triton_server
from fastmmoe.runtime.interop.triton_server import Server
from tests.support import triton_utils
from tests.support.triton_utils import request

VISIBLE = "CUDA_VISIBLE_DEVICES"


def arguments(kind: str, device: str = "0") -> dict[str, str]:
    values = {"bundle": "/bundle", "provider": "cuda", "threads": "3"}
    parameters = {name: {"string_value": value} for name, value in values.items()}
    config = json.dumps({"parameters": parameters})
    return {"model_config": config, "model_instance_kind": kind, "model_instance_device_id": device}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of `VLM`, and what of the one that it makes."""
    calls: list[Any] = []

    def vlm(*arguments: Any, **settings: Any) -> Any:
        calls.append((arguments, settings))
        return SimpleNamespace(warm_up=lambda: calls.append("warm up"), close=lambda: calls.append("close"))

    monkeypatch.setattr(triton_server, "VLM", vlm)
    monkeypatch.setenv(VISIBLE, "")
    return calls


def test_an_instance_is_warm_before_it_serves(made: list[Any]) -> None:
    server = Server.load(triton_utils.module(), arguments("CPU"))
    assert made == [(("/bundle",), {"provider": "cuda", "threads": 3}), "warm up"]
    assert os.environ[VISIBLE] == ""
    server.close()
    assert made[-1] == "close"


@pytest.mark.parametrize(("before", "after"), [("", "1"), ("4,5", "5")])
def test_an_instance_sees_its_own_device(
    before: str, after: str, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, before)
    Server.load(triton_utils.module(), arguments("GPU", "1"))
    assert os.environ[VISIBLE] == after


def test_what_fails_under_way_is_told_to_all_of_the_call() -> None:
    def fail(*_: Any) -> Any:
        raise BundleMismatch("language_model.data: has changed")

    vlm: Any = SimpleNamespace(
        processor=lambda messages, max_tiles: SimpleNamespace(), groups=lambda inputs, _: [inputs], start=fail
    )
    asked = [request("a"), request("b")]
    Server(triton_utils.module(), vlm).execute(asked)
    for one in asked:
        (response,) = one.sender.responses
        assert response.error == triton_utils.TritonError("language_model.data: has changed")
        assert one.sender.is_closed


def test_text_that_is_no_utf_8() -> None:
    asked = request("a")
    asked.tensors["prompt"][0, 0] = b"\xff"
    vlm: Any = None
    Server(triton_utils.module(), vlm).execute([asked])
    (response,) = asked.sender.responses
    assert response.error is not None and "is no UTF-8" in response.error.message()
