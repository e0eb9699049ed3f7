# SPDX-License-Identifier: Apache-2.0
"""The seam between the runtime and what computes: everything above works on NumPy arrays and a `Backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.types import Array

Caches: TypeAlias = Any
"""Key-value caches of some sequences, in whatever form and memory the backend keeps them."""


class Backend(Protocol):
    """A model's three graphs. One object may serve several threads, each with caches of its own.

    Errors of a library come as RunFailed with the graph's name; files that changed under it as BundleMismatch.
    """

    @property
    def info(self) -> LanguageModelInfo:
        """Sizes of the language model."""

    @property
    def policy(self) -> Policy:
        """The prune sites in its graph."""

    @property
    def longest(self) -> int:
        """The most positions of a sequence."""

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """Features [V, H] of every visual position."""

    def embed(self, input_ids: Array) -> Array:
        """Token embeddings [T, H] of input_ids [T]."""

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Caches | None = None) -> Caches:
        """Caches of so many sequences, with room for so many rows of each in every layer group.

        Args:
            before: caches of as many sequences and no greater capacity, whose rows they begin with; they must not be
                used again.
        """

    def extend(self, feeds: dict[str, Array], caches: Caches) -> dict[str, Array]:
        """One call of the language model, which writes its rows to the caches.

        Args:
            feeds: its inputs but the caches (`signatures.feeds`).
        Returns:
            Its outputs but the caches and their lengths.
        """


@dataclass(frozen=True)
class Observed:
    """Inputs and outputs of an operator's nodes, by a name and their place in the operator's contract."""

    operator: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int] = field(default_factory=dict)


class Observable(Backend, Protocol):
    """A backend that can show what happens inside of its language model."""

    def observe(self, observed: Observed) -> Backend:
        """The same language model, whose `extend` also returns these values of every node of the operator.

        The n-th node's are called `OPERATOR.NAME.n`.
        """


def embed_prompt(backend: Backend, input_ids: Array, visual_index: Array, features: Array | None) -> Array:
    """Embeddings [T, H] of a prompt, with the pictures' features [V, H] at its visual tokens; None = no pictures."""
    embeds = backend.embed(input_ids)
    if features is not None:
        embeds[visual_index] = features
    return embeds
