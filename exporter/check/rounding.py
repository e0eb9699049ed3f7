# SPDX-License-Identifier: Apache-2.0
"""What the operators round as they run: the written graphs beside themselves without it.

Exactly computed they are torch's numbers on what is written. As they run, kernels round the rows that they multiply
with weights of 16 bits to bfloat16, and with those of 8 and 4 bits to 127 steps either way of 0. That is a difference
of its own: of what is meant, not of a mistake, and far smaller than what two unrelated results differ by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fastmmoe.exporter.check.prompts import Outcome, Prompt, run_in
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.types import Array, Say

FEATURES_MOST = {"bf16": 0.03, "int8": 0.1}
"""Of the features' norm, by the format of the tower."""
LOGITS_MOST = 1.0
"""Of the logits' norm, their mean left out. Where experts nearly tie, rounding has rows go to others, whatever the
format: random models of 4 layers differ by up to 0.3, the trained demo model by 0.01, unrelated logits by 1.4."""


class Load(Protocol):
    """Gives a backend with one graph of what was written."""

    def __call__(self, graph: str, *, is_exact: bool) -> OnnxRuntime:
        """is_exact: see `MappedOnnxRuntime`."""


def roundings(
    load: Load, manifest: Manifest, vision_inputs: dict[str, Array], prompt: Prompt, say: Say
) -> Iterator[tuple[str, float, float]]:
    """What is compared, how far it moves of its norm, and how far it may; nothing of a graph that rounds nothing."""
    if "vision" in manifest.operator_graphs:
        say("checking what the tower rounds as it runs ...")
        exact, fast = (load("vision", is_exact=is_exact).image_features(vision_inputs) for is_exact in (True, False))
        most = FEATURES_MOST[manifest.linears.vision.weight_format]
        yield "vision, of its norm", relative(np.asarray(fast), np.asarray(exact)), most
    if manifest.rounds_logits:
        say("checking what the language model rounds as it runs ...")
        of_exact, of_fast = (run_in(load("language_model", is_exact=is_exact), prompt) for is_exact in (True, False))
        what = f"logits, of their norm; {same_choices(of_fast, of_exact)} calls choose the same token"
        yield what, logits_difference(of_fast, of_exact), LOGITS_MOST


def relative(found: Array, exact: Array) -> float:
    """Norm of a difference, of the exact values' norm; 0 where both are 0."""
    norm = float(np.linalg.norm(exact))
    distance = float(np.linalg.norm(found - exact))
    return distance / norm if norm else distance


def logits_difference(found: Outcome, exact: Outcome) -> float:
    """The greatest difference of a call's logits, of their norm without their mean, which no choice depends on."""
    return max(relative(_centred(x), _centred(y)) for x, y in zip(found.logits, exact.logits, strict=True))


def same_choices(found: Outcome, exact: Outcome) -> str:
    """Of how many calls the greatest logit is the same one."""
    same = list(_same(found.logits, exact.logits))
    return f"{sum(same)} of {len(same)}"


def _same(a: Sequence[Array], b: Sequence[Array]) -> Iterator[bool]:
    return (bool(x.argmax() == y.argmax()) for x, y in zip(a, b, strict=True))


def _centred(logits: Array) -> Array:
    centred: Array = logits - logits.mean()
    return centred
