# SPDX-License-Identifier: Apache-2.0
"""The search: batches of trials on quality and FLOPs, kept in a journal from which a later run goes on.

What a trial tries depends on the seed and on the trials of earlier batches only. So neither the number of workers, nor
the backend, nor an interruption changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fastmmoe.calibration.front import front
from fastmmoe.calibration.journal import mend_journal
from fastmmoe.calibration.space import Params, Space
from fastmmoe.calibration.workers import Evaluate
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.types import Say

JOURNAL = "trials.jsonl"
STUDY = "fastmmoe"
BATCH = 8
"""Trials that are chosen together, whatever the number of workers."""
RANDOM_TRIALS = 32
"""After these the sampler looks where the good ones were."""
DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "minimize")


@dataclass(frozen=True)
class Trial:
    """A trial that has ended: its score on the search's questions, and its FLOPs as a share of the full model's."""

    number: int
    options: PolicyOptions
    score: float
    cost: float


class Search:
    """Trials of one model on one set of questions.

    Args:
        journal: file that is made, or gone on with.
        identity: what the trials depend on; a journal of another one is refused.
        cost_of: FLOPs of settings as a share of the full model's.
        first: parameters of the first trials, in order.
        say: gets a line for each batch, and for what was dropped of a journal that was cut off.
    Raises:
        InvalidRequest: the journal is damaged, or belongs to other questions, another model, seed or version.
    """

    def __init__(
        self,
        journal: Path,
        identity: dict[str, Any],
        space: Space,
        cost_of: Callable[[PolicyOptions], float],
        first: Sequence[Params],
        say: Say,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._cost_of, self._first, self._say = space, cost_of, first, say
        self._seed = int(identity["seed"])
        if dropped := mend_journal(journal):
            say(dropped)
        self._study = _open_study(journal)
        _check_identity(journal, self._study, identity)

    @property
    def defaults(self) -> int:
        """The first trials so many are the default schedule."""
        return len(self._first)

    @property
    def trials(self) -> list[Trial]:
        """All that have ended."""
        found = self._study.get_trials(deepcopy=False)
        return [Trial(t.number, self._space.options(t.params), t.values[0], t.values[1]) for t in found]

    def run(self, trials: int, evaluate: Evaluate, count: int) -> None:
        """Go on until there are so many trials in all.

        Args:
            count: questions of a trial.
        """
        while (done := len(self._study.get_trials(deepcopy=False))) < trials:
            batch = self._ask(done, trials)
            options = [self._space.options(trial.params) for trial in batch]
            outcomes = evaluate(options, count)
            for trial, settings, outcome in zip(batch, options, outcomes, strict=True):
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=trial.params,
                        distributions=trial.distributions,
                        values=[outcome.score, self._cost_of(settings)],
                    )
                )
            ended = self.trials
            best = front([(t.score, t.cost) for t in ended])
            self._say(f"trial {len(ended)} of {trials}: {len(best)} on the front")

    def _ask(self, done: int, trials: int) -> list[optuna.trial.Trial]:
        """What the batch lacks of which `done` is a part, up to `trials`.

        They are chosen outside the journal, which only takes those that have ended, and from the batch's start on, so
        that a batch of which a part was kept becomes the same.
        """
        start = done - done % BATCH
        sampler = TPESampler(
            seed=self._seed * 1_000_003 + start, n_startup_trials=RANDOM_TRIALS, multivariate=True, constant_liar=True
        )
        study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
        study.add_trials(self._study.get_trials(deepcopy=False)[:start])
        for params in self._first[start : start + BATCH]:
            study.enqueue_trial(dict(params))
        batch = [study.ask(self._space.distributions) for _ in range(min(BATCH, trials - start))]
        return batch[done - start :]


def _open_study(journal: Path) -> optuna.Study:
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name=STUDY, directions=DIRECTIONS, load_if_exists=True)
    # What replaying records with other fields or values than its own ends in.
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise InvalidRequest(f"{journal}: damaged ({type(error).__name__}: {error}); remove the file") from error


def _check_identity(journal: Path, study: optuna.Study, identity: dict[str, Any]) -> None:
    known = study.user_attrs.get("identity")
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("identity", identity)
        return
    known = {} if known is None else known
    if known != identity:
        name = next(name for name in identity if known.get(name) != identity[name])
        before, now = (str(values.get(name))[:12] for values in (known, identity))
        raise InvalidRequest(
            f"{journal}: its trials were made with {name} {before}, this run has {now}; give another --out, or remove "
            "the file"
        )
