# SPDX-License-Identifier: Apache-2.0
"""Engines run on the host double of CUDA and TensorRT, from the export to answers.

The double computes an engine's graph in float32, with the weights and caches of 16 bits that the engine has: tokens and
survivors are those of the bundle for the CPU, logits as close as 16-bit weights allow.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.answer import Answer
from fastmmoe.runtime.backends.tensorrt.caches import DeviceCaches
from fastmmoe.runtime.bundle.verification import Bundle
from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest, RunFailed
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.vlm import VLM
from tests.support.counted_calls import counted
from tests.support.double import Double
from tests.support.messages import question

SQUARE = "What color is the square?"
RETENTIONS = (1.0, 0.75, 0.5, 0.25, 0.05)
HALF = 2e-2
"""Share of the greatest logit by which float16 weights and caches may move one."""


@pytest.fixture(scope="session")
def on_cpu(demo_bundles: tuple[Path, Path]) -> VLM:
    """The bundle for the CPU."""
    return VLM(demo_bundles[0])


@pytest.fixture
def device(double: Double) -> Any:
    """`device_double.control`, over a fresh device."""
    return double.modules().control


@pytest.fixture
def engines(device: Any, demo_bundles: tuple[Path, Path]) -> Iterator[VLM]:
    """The bundle with engines on that device; all of its memory is given back at the end."""
    with VLM(demo_bundles[1]) as vlm:
        yield vlm
        gc.collect()
    assert [live.allocations for live in device.live()] == [0, 0]


def assert_same(ours: Answer, theirs: Answer) -> None:
    """Tokens, survivors and caches are equal."""
    assert (ours.text, ours.token_ids, ours.finish_reason) == (theirs.text, theirs.token_ids, theirs.finish_reason)
    assert ours.stats.cache_lengths == theirs.stats.cache_lengths
    for a, b in zip(ours.stats.kept_index, theirs.stats.kept_index, strict=True):
        assert np.array_equal(a, b)


def answers(vlms: tuple[VLM, VLM], picture: str, **options: Any) -> list[Answer]:
    """The same question to both."""
    return [vlm.generate(question(SQUARE, picture), **options) for vlm in vlms]


def test_every_retention_gives_the_tokens_of_the_cpu(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    for retention in RETENTIONS:
        for picture in pictures:
            options = {"retention": retention, "max_new_tokens": 8}
            assert_same(
                engines.generate(question(SQUARE, picture), **options),
                on_cpu.generate(question(SQUARE, picture), **options),
            )


def test_methods_and_experts_of_a_request(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    for options in ({"method": "none"}, {"retention": 1.0, "visual_top_k": 1}, {"retention": 0.3, "alpha": 0.9}):
        assert_same(
            engines.generate(question(SQUARE, pictures[0]), **options),
            on_cpu.generate(question(SQUARE, pictures[0]), **options),
        )


def test_text_alone(engines: VLM, on_cpu: VLM) -> None:
    """Beyond what would end the answer: without a picture tokens alternate, so a step more or less would show."""
    found = []
    for vlm in (engines, on_cpu):
        inputs = [vlm.processor(question("Where is the square? Where is the circle?"))]
        run = Run(vlm.manifest, vlm.backend, inputs, RequestOptions(max_new_tokens=20))
        found.append([tokens[0].id for tokens in run.tokens()])
    assert found[0] == found[1] and len(set(found[0])) > 3


def test_a_batch_whose_answers_end_at_different_steps(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    """Beyond what ends the answers, so that there are many steps: one row is finished after 2, another has 5."""
    found = []
    for vlm in (engines, on_cpu):
        inputs = [vlm.processor(question(SQUARE, picture)) for picture in pictures]
        run = Run(vlm.manifest, vlm.backend, inputs, RequestOptions(retention=0.5, max_new_tokens=12))
        run.max_new_tokens[1] = 5
        ids: list[list[int]] = [[], [], []]
        for tokens in run.tokens():
            for token in tokens:
                ids[token.sequence].append(token.id)
            if len(ids[2]) == 2:
                run.finish(0)
        found.append((ids, run.batch.lengths, run.unfed, [stats.cache_lengths for stats in run.stats]))
    assert found[0] == found[1]
    assert [len(row) for row in found[0][0]] == [2, 5, 12]


def test_a_batch_of_conversations(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    conversations = [question(SQUARE, picture) for picture in pictures]
    for options in ({"retention": 0.5}, {"retention": 0.25, "method": "fastmmoe"}):
        answers = (vlm.generate_batch(conversations, **options) for vlm in (engines, on_cpu))
        for ours, theirs in zip(*answers, strict=True):
            assert_same(ours, theirs)


def test_conversations_in_turn(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    """Two at a time on one backend; the second outgrows its caches."""
    pairs = [(Conversation(engines, retention=R), Conversation(on_cpu, retention=R)) for R in (0.5, 0.25)]
    for turn in range(4):
        for (ours, theirs), picture in zip(pairs, pictures, strict=False):
            content = question("Describe the scene.", picture)[0]["content"] if turn < 2 else "And what color is it?"
            assert_same(ours.ask(content), theirs.ask(content))


def test_answers_that_are_read_in_turn(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    """Steps of two answers alternate on the device; each has state of its own."""
    questions = [question("Describe the scene.", picture) for picture in pictures[:2]]
    streams = [engines.generate_stream(asked, max_new_tokens=9) for asked in questions]
    pieces: list[list[Any]] = [[], []]
    while any(streams):
        for i, stream in enumerate(streams):
            piece = next(stream, None) if stream else None
            if piece is None:
                streams[i] = None  # type: ignore[call-overload]
            else:
                pieces[i].append(piece)
    for asked, found in zip(questions, pieces, strict=True):
        assert_same(Answer.of(found), on_cpu.generate(asked, max_new_tokens=9))


def test_threads_share_the_engines(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    expected = [on_cpu.generate(question(SQUARE, picture), max_new_tokens=6) for picture in pictures]
    found: dict[int, Answer] = {}

    def run(i: int) -> None:
        found[i] = engines.generate(question(SQUARE, pictures[i]), max_new_tokens=6)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in found.items():
        assert_same(answer, expected[i])
    assert len(found) == 3


def test_logits_where_they_are_asked_for(engines: VLM, on_cpu: VLM, pictures: list[str]) -> None:
    inputs = on_cpu.processor(question(SQUARE, pictures[0]))
    tensors = {"input_ids": inputs.input_ids[None], **inputs.vision_inputs}
    found = []
    for vlm in (engines, on_cpu):
        run = Run(vlm.manifest, vlm.backend, [inputs], RequestOptions(max_new_tokens=5), has_logits=True)
        found.append([tokens[0] for tokens in run.tokens()])
    assert tensors and [token.id for token in found[0]] == [token.id for token in found[1]]
    for ours, theirs in zip(*found, strict=True):
        assert ours.logits is not None and theirs.logits is not None
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=HALF * np.abs(theirs.logits).max())


def counted_steps(engines: VLM, device: Any, picture: str, steps: int) -> Any:
    """What CUDA is called for by so many decode steps after the first token."""
    inputs = engines.processor(question(SQUARE, picture))
    run = Run(engines.manifest, engines.backend, [inputs], RequestOptions(max_new_tokens=steps + 1))
    tokens = run.tokens()
    next(tokens)
    device.reset_counters()
    assert len(list(tokens)) == steps
    return device.counters()


def test_decoding_is_one_launch_and_one_event_a_token(engines: VLM, device: Any, pictures: list[str]) -> None:
    """The first answer captures the graph, the second finds it: 64 steps, no allocation, no copy of a cache."""
    assert counted_steps(engines, device, pictures[0], 64).captures == 1
    counters = counted_steps(engines, device, pictures[0], 64)
    # The inputs of the first step are uploaded, which has an event of its own.
    assert (counters.graph_launches, counters.events) == (64, 65)
    assert (counters.captures, counters.allocations, counters.enqueues) == (0, 0, 0)
    assert counters.copies == 1 + 64 and counters.copied_bytes < 1 << 16


MOST_CALLS = 80
"""Of a token's functions, in Python and C."""


@pytest.mark.parametrize("is_timed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["calls", "time"])
def test_host_code_of_a_token_is_short(is_timed: bool, engines: VLM, pictures: list[str]) -> None:
    """50 microseconds are 1 % of a step at 5 ms; CUDA's own calls are left out."""
    cuda = sys.modules["cuda.bindings.runtime"]
    inputs = engines.processor(question(SQUARE, pictures[0]))
    run = Run(engines.manifest, engines.backend, [inputs], RequestOptions(max_new_tokens=400))
    tokens, times = run.tokens(), []
    next(tokens), next(tokens)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize"):
            patch.setattr(cuda, name, lambda *_: (cuda.cudaError_t.cudaSuccess,))
        assert isinstance(run.batch.caches, DeviceCaches)
        for slot in run.batch.caches.storage.tokens:
            slot[:] = 5
        if is_timed:
            for _ in range(300):
                start = time.perf_counter()
                next(tokens)
                times.append(time.perf_counter() - start)
            # Of other work on this machine the quietest of five spans has the least.
            assert min(np.median(span) for span in np.split(np.array(times), 5)) < 50e-6
        else:
            with counted() as calls:
                for _ in range(100):
                    next(tokens)
            assert calls.count < 100 * MOST_CALLS
        tokens.close()  # type: ignore[attr-defined]


def test_many_requests_take_no_more_memory(engines: VLM, device: Any, pictures: list[str]) -> None:
    questions = [(question(SQUARE, pictures[i % 3]), RETENTIONS[i % 5]) for i in range(15)]
    for messages, retention in questions:
        engines.generate(messages, retention=retention, max_new_tokens=3)
    device.no_op()
    before = device.live()
    for i in range(200):
        messages, retention = questions[i % 15]
        engines.generate(messages, retention=retention, max_new_tokens=3)
    assert device.live() == before


def test_a_model_that_nobody_has_gives_its_memory_back(
    device: Any, demo_bundles: tuple[Path, Path], pictures: list[str]
) -> None:
    vlm = VLM(demo_bundles[1])
    assert vlm.generate(question(SQUARE, pictures[0])).text == "red" and device.live()[0].allocations > 0
    del vlm
    gc.collect()
    assert [live.allocations for live in device.live()] == [0, 0]


def test_weights_that_change_while_they_are_read(
    device: Any, demo_bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays on the device, even while somebody looks at the error."""

    def refuse(bundle: Bundle) -> None:
        raise BundleMismatch(f"{bundle.directory}: has changed")

    monkeypatch.setattr(Bundle, "check_unchanged", refuse)
    with pytest.raises(BundleMismatch, match="has changed"):
        VLM(demo_bundles[1], verify=False)
    assert device.counters().allocations > 0 and [live.allocations for live in device.live()] == [0, 0]


def test_memory_that_runs_out(double: Double, demo_bundles: tuple[Path, Path], pictures: list[str]) -> None:
    """In the middle of requests: one line, and requests that need less go on."""
    control = double.modules().control
    vlm = VLM(demo_bundles[1])
    needed = control.live()[0].bytes
    vlm.close()
    double.modules(memory=needed + (3 << 19))
    vlm = VLM(demo_bundles[1])
    expected = vlm.generate(question(SQUARE, pictures[0]), max_new_tokens=4)
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"^key-value caches of [\d.]+ MB do not fit, [\d.]+ MB are free[^\n]*$"):
            vlm.generate_batch([question(SQUARE, picture) for picture in pictures], max_new_tokens=400)
        assert_same(vlm.generate(question(SQUARE, pictures[0]), max_new_tokens=4), expected)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(s, marks=pytest.mark.slow) for s in range(8, 30))])
def test_any_legal_order_gives_the_same_bits(
    seed: int, double: Double, demo_bundles: tuple[Path, Path], pictures: list[str]
) -> None:
    """Schedules of the streams' work; the CPU's tokens are compared elsewhere."""
    found = []
    for number in (0, seed + 1):
        double.modules(seed=number)
        vlm = VLM(demo_bundles[1])
        inputs = [vlm.processor(question(SQUARE, picture)) for picture in pictures[:2]]
        run = Run(vlm.manifest, vlm.backend, inputs, RequestOptions(max_new_tokens=4, retention=0.4), has_logits=True)
        logits = [np.asarray(token.logits) for tokens in run.tokens() for token in tokens]
        found.append((logits, vlm.generate(question(SQUARE, pictures[2]), max_new_tokens=6).token_ids))
        vlm.close()
    assert found[0][1] == found[1][1]
    assert np.array_equal(np.stack(found[0][0]), np.stack(found[1][0]))


def test_more_than_the_engines_take(engines: VLM, pictures: list[str]) -> None:
    two_pictures = question(SQUARE, pictures[0])
    two_pictures[0]["content"] *= 2
    for conversations, words in (
        (
            [question(SQUARE, pictures[0])] * 4,
            "4 sequences at once: the engines take 3; build them for more: fastmmoe build",
        ),
        ([two_pictures], "4 tiles: the engines take 2; .* --max-tiles 4"),
        ([[{"role": "user", "content": "red " * 1000}]], "tokens of one call: the engines take 900"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            engines.generate_batch(conversations)
        assert engines.generate(question(SQUARE, pictures[0])).text == "red"


def test_the_commands(demo_bundles: tuple[Path, Path], pictures: list[str]) -> None:
    """`fastmmoe run` as a user calls it, with the double in the place of CUDA and TensorRT."""
    found = []
    for bundle, environment in zip(demo_bundles, (dict(os.environ), Double().environment()), strict=True):
        command = [sys.executable, "-m", "fastmmoe.runtime.cli.main", "run", str(bundle), "--image", pictures[1]]
        done = subprocess.run(
            [*command, "--prompt", "What color is the circle?", "--retention", "0.25"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(done.stdout)
    assert found[0] == found[1] == "blue\n"


def test_without_a_gpu_the_command_says_so(demo_bundles: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "fastmmoe.runtime.cli.main", "run", str(demo_bundles[1]), "--prompt", "hello"]
    for gpu, words in (("none", "no NVIDIA GPU is visible"), ("old", "the NVIDIA driver is for CUDA")):
        done = subprocess.run(command, env=Double().environment(gpu=gpu), capture_output=True, text=True)
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and len(lines) == 1 and words in lines[0], lines
