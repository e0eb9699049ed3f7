# SPDX-License-Identifier: Apache-2.0
"""Tokens from logits: the most probable one, or one drawn by temperature, top_k and top_p; their log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array

_DRAWS = 1
"""Keeps these random numbers apart from those of method random, which follow from seed and position alone."""

_PARTS = 4
"""Parts of the values for each that is asked for: with more of them, fewer others are left to sort."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities by the model itself, before temperature, top_k and top_p.

    Attributes:
        chosen: of the token that was taken.
        top: (id, log-probability) of the most probable tokens, the smaller id first of equal ones.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


def log_softmax(logits: Array) -> Array:
    """Log-probabilities, float64, of logits [..., vocab]."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(-1, keepdims=True)))


def logprobs_of(logits: Array, chosen: int, count: int) -> TokenLogprobs:
    """Of one token and of the `count` most probable ones, by its logits [vocab]."""
    values = log_softmax(logits)
    top = greatest(values, count)
    return TokenLogprobs(float(values[chosen]), tuple(zip(top.tolist(), values[top].tolist(), strict=True)))


def choose(logits: Array, options: RequestOptions, position: int) -> int:
    """The token that follows, by its logits [vocab].

    Args:
        position: the one in its sequence that the token takes. With the seed it decides what is drawn, so that the same
            request draws the same tokens, whatever else is in the batch.
    """
    if not options.is_sampled:
        return int(np.argmax(logits))
    ids, p = distribution(logits, options.temperature, options.top_k, options.top_p)
    sums = np.cumsum(p)
    # Rounding may leave the last sum below the number drawn.
    place = int(np.searchsorted(sums, draw(options.seed, position) * sums[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def distribution(logits: Array, temperature: float, top_k: int, top_p: float) -> tuple[Array, Array]:
    """The tokens that may be drawn, ascending, and their probabilities, float64.

    Args:
        logits: [vocab].
        temperature: above 0; logits are divided by it.
        top_k: as many of the most probable tokens are left, the smaller id of equal ones; 0 and -1 = all.
        top_p: of these the fewest most probable ones that have this share of the probability together.
    Source: the order of Transformers and vLLM: temperature, top_k, top_p.
    """
    ids = np.arange(len(logits)) if top_k < 1 else np.sort(greatest(logits, top_k))
    values = np.asarray(logits if top_k < 1 else logits[ids], np.float64)
    # In place: a vocabulary has more than a hundred thousand tokens.
    p = values - values.max()
    with np.errstate(over="ignore"):
        p /= temperature
    np.exp(p, out=p)
    p /= p.sum()
    if top_p < 1:
        # The tokens below this have together less than what is left out, so sorting may leave them aside.
        ids, p = ids[likely := p >= (1 - top_p) / len(p)], p[likely]
        order = np.argsort(-p, kind="stable")
        count = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
        kept = np.sort(order[:count])
        ids, p = ids[kept], p[kept]
    return ids, p / p.sum()


def greatest(values: Array, count: int) -> Array:
    """Places of the greatest values [N], descending, the smaller place first of equal ones; all where count is N."""
    count = min(count, len(values))
    if not count:
        return np.zeros(0, np.int64)
    # So many parts have a value that is no less than this: what is below it is none of the greatest.
    width = max(1, len(values) // (_PARTS * count))
    parts = values[: len(values) // width * width].reshape(-1, width).max(1)
    least = np.partition(parts, len(parts) - count)[len(parts) - count]
    places = np.flatnonzero(values >= least)
    return np.asarray(places[np.argsort(-values[places], kind="stable")][:count])


def draw(seed: int, position: int) -> float:
    """A number in [0, 1) that follows from both; the bit generator's stream is the same with every version of NumPy."""
    return float(int(np.random.PCG64([seed, position, _DRAWS]).random_raw()) >> 11) * 2.0**-53
