# SPDX-License-Identifier: Apache-2.0
"""The seam between the runtime and what computes: everything above works on NumPy arrays and a `Backend`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from fastmmoe.runtime.backends.node_times import Call
from fastmmoe.runtime.backends.settings import CUDA
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk, Rows
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.types import Array

Caches: TypeAlias = Any
"""Key-value caches of some sequences, in whatever form and memory the backend keeps them."""

Features: TypeAlias = Any
"""What the vision graph makes of a request's pictures, likewise; len() counts its rows."""

Steps: TypeAlias = Generator[Array, None, None]
"""What decoding steps find, one after the other. To close it is to leave the rest."""

Feeds: TypeAlias = dict[str, Any]
"""Inputs of the language model by name: arrays, and as inputs_embeds what `Backend.embed` returned."""


CLOSED = "the model has been closed: load the bundle again"
"""What is said of a use after `Backend.close`."""


class Backend(Protocol):
    """A model's three graphs. One object may serve several threads, each with caches of its own.

    What it holds of a device goes back when nobody has it any more, or at `close`.

    Errors of a library come as RunFailed with the graph's name; files that changed under it as BundleMismatch.
    """

    @property
    def provider(self) -> str:
        """What computes, as a request's statistics name it: "cpu", "cuda", "tensorrt"."""

    @property
    def info(self) -> LanguageModelInfo:
        """Sizes of the language model."""

    @property
    def policy(self) -> Policy:
        """The prune sites in its graph."""

    @property
    def longest(self) -> int:
        """The most positions of a sequence."""

    def close(self) -> None:
        """Give back what it holds of a device; what is asked after it raises InvalidRequest."""

    def image_features(self, vision_inputs: dict[str, Array]) -> Features:
        """Features [V, H] of every visual position. They may be used once."""

    def embed(self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: Features | None = None) -> Rows:
        """Embeddings [T, H] of a prompt's tokens [T], with the pictures' features [V, H] at its visual tokens [V]."""

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Caches | None = None) -> Caches:
        """Caches of so many sequences, with room for so many rows of each in every layer group.

        Args:
            before: caches of as many sequences and no greater capacity, whose rows they begin with; they must not be
                used again.
        """

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """Whether one call takes all of these prompts; each by itself is tried in any case."""

    def extend(self, feeds: Feeds, caches: Caches, wanted: Sequence[str]) -> dict[str, Array]:
        """One call of the language model, which writes its rows to the caches.

        Args:
            feeds: its inputs but the caches (`signatures.feeds`); an array that comes again must hold what it held.
            wanted: names of outputs.
        Returns:
            Those outputs.
        """

    def decode(self, feeds: Feeds, caches: Caches, steps: int) -> Steps | None:
        """Greedy steps one after the other, of which the next may run before this one's tokens are read.

        Args:
            feeds: those of the first step: one token of each sequence.
            steps: how many there will be at most.
        Returns:
            The chosen tokens, int32 [A], -1 where the logits are no numbers; as many times as there are steps. Where
            it is left early, the caches may hold one row more of each sequence than was read. None: this backend
            computes steps by `extend` alone.
        """


class OfManifest:
    """What a backend knows from its bundle's manifest."""

    manifest: Manifest

    @property
    def info(self) -> LanguageModelInfo:
        """Sizes of the language model."""
        return self.manifest.language_model

    @property
    def policy(self) -> Policy:
        """The prune sites in its graph."""
        return self.manifest.policy

    @property
    def longest(self) -> int:
        """The most positions of a sequence."""
        return self.manifest.processor.max_position_embeddings


@runtime_checkable
class Timed(Protocol):
    """Features that are computed while the host goes on."""

    def elapsed_ms(self) -> float:
        """Milliseconds that the vision graph took; waits for it."""


@dataclass(frozen=True)
class Observed:
    """Inputs and outputs of an operator's nodes, by a name and their place in the operator's contract."""

    operator: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Observable(Backend, Protocol):
    """A backend that can show what happens inside of its language model."""

    def observe(self, observed: Observed) -> Backend:
        """The same language model, whose `extend` also returns these values of every node of the operator, unasked.

        The n-th node's are called `OPERATOR.NAME.n`.
        """


@runtime_checkable
class Profilable(Backend, Protocol):
    """A backend that can tell how long the nodes of its graphs took, where its settings asked for that."""

    def end_profiling(self) -> dict[str, list[Call]]:
        """Of each graph, its calls since the bundle was loaded. Later ones may not be noted."""


def profilable(backend: Backend) -> Profilable:
    """The backend, where it is one that tells how long nodes took; raises InvalidRequest where it is not."""
    # ONNX Runtime tells of any provider's nodes how long the host was at them.
    if backend.provider != CUDA and isinstance(backend, Profilable):
        return backend
    raise InvalidRequest(
        f"provider {backend.provider}: ONNX Runtime tells when it launched a GPU's kernels, not how long they ran: "
        "take --provider tensorrt, or NVIDIA's nsys"
    )


def observable(backend: Backend) -> Observable:
    """The backend, where it is one that shows what happens inside; raises InvalidRequest where it is not."""
    if not isinstance(backend, Observable):
        raise InvalidRequest("engines do not show what happens inside of them: use a bundle exported with --target cpu")
    return backend


def place_features(embeds: Array, visual_index: Array, features: Array | None) -> Array:
    """The embeddings [T, H], with the pictures' features [V, H] at the visual tokens; None = no pictures."""
    if features is not None:
        embeds[visual_index] = features
    return embeds
