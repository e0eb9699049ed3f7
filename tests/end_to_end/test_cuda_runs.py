# SPDX-License-Identifier: Apache-2.0
"""The backend of ONNX Runtime's CUDA provider, from pictures to answers, over the float32 twin of a bundle for RTX.

The CPU provider stands in for a GPU (tests/support/cuda_twin.py): tokens, survivors and caches are those of the bundle
for the CPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmmoe.runtime.answer import Answer
from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.vlm import VLM
from tests.support.double import installed
from tests.support.messages import question

SQUARE = "What color is the square?"
HALF = 2e-2
"""Share of the greatest logit by which float16 weights may move one."""


@pytest.fixture(scope="module")
def on_cpu(demo_bundles: tuple[Path, Path]) -> VLM:
    """The bundle for the CPU."""
    return VLM(demo_bundles[0])


@pytest.fixture(scope="module")
def twin(demo_bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """The bundle for RTX, run by the CUDA provider's backend."""
    with installed():
        from tests.support.cuda_twin import TwinRuntime, write_twin

        directory = tmp_path_factory.mktemp("twin") / "rtx"
        manifest = write_twin(demo_bundles[1], directory)
        vlm = VLM(demo_bundles[0])
        vlm.manifest, vlm.backend = manifest, TwinRuntime(directory, manifest)
    return vlm


def assert_same(ours: Answer, theirs: Answer) -> None:
    """Tokens, survivors and caches are equal."""
    assert (ours.text, ours.token_ids, ours.finish_reason) == (theirs.text, theirs.token_ids, theirs.finish_reason)
    assert ours.stats.cache_lengths == theirs.stats.cache_lengths
    for a, b in zip(ours.stats.kept_index, theirs.stats.kept_index, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("retention", [1.0, 0.5, 0.05])
def test_tokens_are_those_of_the_cpu(retention: float, twin: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    for picture in pictures:
        options = {"retention": retention, "max_new_tokens": 8}
        ours, theirs = (vlm.generate(question(SQUARE, picture), **options) for vlm in (twin, on_cpu))
        assert_same(ours, theirs)
        assert (ours.stats.provider, theirs.stats.provider) == ("cuda", "cpu")


def test_several_conversations_with_and_without_pictures(twin: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    """Features of several prompts of one call go to the rows of their own."""
    plain = [{"role": "user", "content": "What color is the sky?"}]
    asked = [question(SQUARE, pictures[0]), plain, question(SQUARE, pictures[1], pictures[2])]
    for ours, theirs in zip(*(vlm.generate_batch(asked, retention=0.5) for vlm in (twin, on_cpu)), strict=True):
        assert_same(ours, theirs)


def test_caches_grow_with_a_conversation(twin: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    """Each turn asks for greater caches, which begin with the rows there were."""
    talks = [Conversation(vlm, retention=0.5) for vlm in (twin, on_cpu)]
    contents = [question(SQUARE, picture)[0]["content"] for picture in pictures]
    for content in (contents[0], contents[1], "What color is it? " * 60, contents[2]):
        ours, theirs = (talk.ask(content) for talk in talks)
        assert_same(ours, theirs)
    assert max(theirs.stats.cache_lengths) > 256


def test_logits_are_those_of_the_weights(twin: VLM, on_cpu: VLM) -> None:
    ids = np.arange(3, 23)[None]
    ours, theirs = (vlm.run_tensors({"input_ids": ids}, max_new_tokens=3) for vlm in (twin, on_cpu))
    scale = np.abs(theirs["logits"]).max()
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=0, atol=HALF * scale)
    np.testing.assert_allclose(ours["decode_logits"], theirs["decode_logits"], rtol=0, atol=HALF * scale)
