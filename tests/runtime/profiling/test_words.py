# SPDX-License-Identifier: Apache-2.0
"""What is said above a profile."""

from __future__ import annotations

from fastmmoe.runtime.profiling.words import heading, title
from tests.support.profiles import phase, profile


def test_what_was_measured() -> None:
    assert list(heading(profile())) == [
        "demo on A <processor> & more, provider cpu, 2 threads",
        "fastmmoe, retention 0.5: 5 tiles, visual tokens 100>75>50, 12 of text, 4 new; 3 requests",
        "roofline of 200 GFLOPS and 20.0 GB/s: a test",
    ]
    assert title(phase("prefill")) == "prefill: 11 ms; 11.5 ms with the profiler (+5%)"


def test_a_gpu_has_no_threads_and_perhaps_no_rates() -> None:
    machine = {"device": "Orin", "provider": "tensorrt", "threads": None}
    lines = list(heading(profile(machine=machine, rates=None)))
    assert lines[0] == "demo on Orin, provider tensorrt"
    assert lines[2] == "this machine's rates are not known: no roofline"
