# SPDX-License-Identifier: Apache-2.0
"""Answers chosen from a list by their likelihood: one prefill, and one step for each place where choices go on.

The choices' tokens are a tree. The caches hold the way from the prompt to one place of it; to go another way they are
rewound, as rows behind the lengths in use may be anything. Several prompts walk the tree together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.sampling import log_softmax
from fastmmoe.runtime.types import Array


@dataclass(frozen=True)
class Choice:
    """A text that may have been the answer.

    Attributes:
        log_likelihood: sum of the log-probabilities of its tokens, each after the prompt and those before it. The end
            of the answer counts only where another choice goes on from this one ("left", "left turn"): log-probability
            of any of the model's stop tokens there. So choices exclude each other, and a choice of one token, from
            which none goes on, has that token's.
        probability: share of the likelihood of all choices.
    """

    text: str
    token_ids: tuple[int, ...]
    log_likelihood: float
    probability: float


@dataclass(frozen=True)
class Choices:
    """The choices of a request as tokens.

    Attributes:
        header: ids between the prompt and each of them.
        ends: ids of which each ends an answer.
    """

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    header: tuple[int, ...]
    ends: tuple[int, ...]

    @staticmethod
    def of(texts: Sequence[str], processor: Processor) -> Choices:
        """Each text is encoded as it stands.

        Raises:
            InvalidRequest: one has no tokens, two have the same, or there is no tokenizer.
        """
        ids = [tuple(processor.encode([text])) for text in texts]
        for i, (text, own) in enumerate(zip(texts, ids, strict=True)):
            if not own:
                raise InvalidRequest(f"choices hold {text!r:.80}, which has no tokens: expected texts with some")
            if own in ids[:i]:
                raise InvalidRequest(f"choices hold {text!r:.80}, whose tokens are those of {texts[ids.index(own)]!r}")
        return Choices(tuple(texts), tuple(ids), tuple(processor.answer_header()), processor.config.stop_token_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.token_ids))

    def check_room(self, run: Run) -> None:
        """Raise InvalidRequest where the longest does not fit behind a prompt."""
        room = min(run.max_new_tokens)
        if self.longest > room:
            text = self.texts[max(range(len(self.texts)), key=lambda i: len(self.token_ids[i]))]
            raise InvalidRequest(
                f"choice {text!r:.80} has {self.longest} tokens, the model's positions leave {room} after the prompt: "
                "give shorter choices, or fewer tiles, pictures or a shorter text"
            )

    def answer(self, run: Run) -> list[tuple[Choice, ...]] | None:
        """What each of the run's prompts makes of the choices, in their order; None where it was ended before.

        The run goes on from the most likely one, the first of equal ones (`Run.answer_with`).
        """
        totals = log_likelihoods(run, self.token_ids, self.ends)
        if totals is None:
            return None
        shares = np.exp(log_softmax(totals))
        run.answer_with([self.token_ids[best] for best in totals.argmax(1)])
        return [
            tuple(map(Choice, self.texts, self.token_ids, row.tolist(), share.tolist()))
            for row, share in zip(totals, shares, strict=True)
        ]


def log_likelihoods(run: Run, choices: Sequence[tuple[int, ...]], ends: Sequence[int]) -> Array | None:
    """Log-likelihoods float64 [sequences, choices]; None where the run was ended before they were known.

    Args:
        choices: tokens of each.
        ends: tokens that end an answer.
    """
    totals = np.zeros((len(run.stats), len(choices)))
    # In this order a beginning comes before what goes on from it, and nothing else between the two.
    for start in sorted({choice[:n] for choice in choices for n in range(len(choice))}):
        logits = run.logits_after(start)
        if logits is None:
            return None
        found = log_softmax(logits)
        for i, choice in enumerate(choices):
            if choice == start:
                totals[:, i] += np.logaddexp.reduce(found[:, list(ends)], axis=1)
            elif choice[: len(start)] == start:
                totals[:, i] += found[:, choice[len(start)]]
    return totals
