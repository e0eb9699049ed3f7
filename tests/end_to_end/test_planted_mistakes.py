# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in the TensorRT backend: the double names each, or the tokens tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.backends.tensorrt import backend as backend_module
from fastmmoe.runtime.backends.tensorrt.caches import CachePool, Storage
from fastmmoe.runtime.backends.tensorrt.device import Device
from fastmmoe.runtime.backends.tensorrt.engine import Context
from fastmmoe.runtime.backends.tensorrt.memory import Staging
from fastmmoe.runtime.errors import FastmmoeError
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.vlm import VLM
from tests.support.double import Double
from tests.support.messages import question

Patch = pytest.MonkeyPatch
SQUARE = "What color is the square?"
SEEDS, EACH_OF, OF_SCHEDULES = 8, 28, 30


def present_beside_past(patch: Patch) -> None:
    """A cache's output has an address of its own."""
    run = Context.run

    def elsewhere(self: Context, inputs: Any, outputs: Any, addresses: dict[str, int], stream: Any) -> None:
        if "present.0.key" in addresses:
            addresses = addresses | {"present.0.key": addresses["inputs_embeds"]}
        run(self, inputs, outputs, addresses, stream)

    patch.setattr(Context, "run", elsewhere)


def rows_left_behind(patch: Patch) -> None:
    """Greater caches do not get the rows of those before."""
    patch.setattr(backend_module, "copy_caches", lambda *_: None)


def staging_used_too_soon(patch: Patch) -> None:
    """The host fills pinned memory that a copy has yet to read."""
    upload = Staging.upload

    def at_once(self: Staging, *arguments: Any) -> None:
        self._is_pending, self._half = [False, False], 1
        upload(self, *arguments)

    patch.setattr(Staging, "upload", at_once)


def features_read_too_soon(patch: Patch) -> None:
    """The language model's stream does not wait for the vision graph."""
    patch.setattr(Device, "wait", lambda *_: None)


def results_read_too_soon(patch: Patch) -> None:
    """The host does not wait for what it reads."""
    patch.setattr(Device, "wait_on_host", lambda *_: None)


def one_slot_for_all_steps(patch: Patch) -> None:
    """A step's tokens are written over those that the host has yet to read."""
    patch.setattr("fastmmoe.runtime.backends.tensorrt.decoding.SLOTS", 1)


def state_of_no_step(patch: Patch) -> None:
    """A captured step does not hand its tokens to the next."""
    copy = Device.copy

    def skipped(self: Device, target: int, source: int, size: int, stream: Any) -> None:
        if not is_following(target, source):
            copy(self, target, source, size, stream)

    storages: list[Storage] = []
    make = CachePool._make

    def remembered(self: CachePool, *arguments: Any) -> Storage:
        storages.append(make(self, *arguments))
        return storages[-1]

    def is_following(target: int, source: int) -> bool:
        return any((target, source) == (one.state, one.following) for one in storages)

    patch.setattr(CachePool, "_make", remembered)
    patch.setattr(Device, "copy", skipped)


def freed_while_in_use(patch: Patch) -> None:
    """Caches go to others at once, and idle ones are freed with their work still queued."""
    patch.setattr("fastmmoe.runtime.backends.tensorrt.caches.MOST_IDLE", 1)
    patch.setattr(Device, "synchronize", lambda *_: None)


MISTAKES: dict[str, Callable[[Patch], None]] = {
    function.__name__: function
    for function in (
        present_beside_past,
        rows_left_behind,
        staging_used_too_soon,
        features_read_too_soon,
        results_read_too_soon,
        one_slot_for_all_steps,
        state_of_no_step,
        freed_while_in_use,
    )
}


def tokens_of(vlm: VLM, pictures: list[str]) -> list[list[int]]:
    """Three pictures at once, and a text whose answer alternates and which goes on until it outgrows its caches."""
    options = RequestOptions(max_new_tokens=3, retention=0.5)
    batch = Run(vlm.manifest, vlm.backend, [vlm.processor(question(SQUARE, one)) for one in pictures], options)
    found = [[token.id for token in tokens] for tokens in batch.tokens()]
    run = None
    for text, count in (("Where is the square? Where is the circle?", 6), ("And what color is it? " * 40, 3), ("a", 3)):
        before = None if run is None else run.batch
        inputs = [vlm.processor(question(text))]
        run = Run(vlm.manifest, vlm.backend, inputs, RequestOptions(max_new_tokens=count), before)
        found.append([tokens[0].id for tokens in run.tokens()])
    return found


@pytest.fixture
def caught(double: Double, demo_bundles: tuple[Path, Path], pictures: list[str]) -> Callable[[str, int], str]:
    """Function (mistake, seed) -> how it was caught, "" where it was not."""
    double.modules()
    expected = tokens_of(VLM(demo_bundles[1]), pictures)

    def run(name: str, seed: int) -> str:
        control = double.modules(seed=seed).control
        caught_by = (control.Misuse, FastmmoeError)
        with pytest.MonkeyPatch.context() as patch:
            MISTAKES[name](patch)
            try:
                found = tokens_of(VLM(demo_bundles[1]), pictures)
            except caught_by as error:
                return type(error).__name__
            finally:
                control.reset()
        return "" if found == expected else "other tokens"

    return run


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name: str, caught: Callable[[str, int], str]) -> None:
    assert any(caught(name, seed) for seed in range(SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_almost_every_schedule_catches_a_mistake(name: str, caught: Callable[[str, int], str]) -> None:
    assert sum(bool(caught(name, seed)) for seed in range(OF_SCHEDULES)) >= EACH_OF
