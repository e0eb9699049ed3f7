# SPDX-License-Identifier: Apache-2.0
"""What the table and the picture of a profile say alike."""

from __future__ import annotations

from collections.abc import Iterator

from fastmmoe.runtime.profiling.result import Phase, Profile

NAMES = {"vision": "vision", "prefill": "prefill", "decode": "a decode step"}
LEAST = 0.001
OUTSIDE = "outside of nodes"


def heading(profile: Profile) -> Iterator[str]:
    """Lines on what ran where: machine, request, rates."""
    machine, settings, rates = profile.machine, profile.settings, profile.rates
    count = machine["threads"]
    threads = "" if count is None else f", {count} thread{'s' * (count != 1)}"
    yield f"{profile.bundle['model']} on {machine['device']}, provider {machine['provider']}{threads}"
    stages = ">".join(map(str, (settings["visual_tokens"], *settings["kept_visual_tokens"])))
    yield (
        f"{settings['method']}, retention {settings['retention']:g}: {settings['tiles']} tiles, visual tokens "
        f"{stages}, {settings['text_tokens']} of text, {settings['new_tokens']} new; {settings['repetitions']} requests"
    )
    if rates is None:
        yield "this machine's rates are not known: no roofline"
    else:
        flops, read = rates["flops"] / 1e9, rates["bytes"] / 1e9
        yield f"roofline of {flops:,.0f} GFLOPS and {read:,.1f} GB/s: {rates['source']}"


def digits(ms: float) -> str:
    """A time in three digits, without an exponent."""
    if 0 < ms < LEAST:
        return f"<{LEAST:g}"
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.3g}"


def title(phase: Phase) -> str:
    """A phase in one line."""
    return (
        f"{NAMES[phase.phase]}: {digits(phase.unprofiled_ms)} ms; {digits(phase.profiled_ms)} ms with the profiler "
        f"({phase.overhead:+.0%})"
    )
