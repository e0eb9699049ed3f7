# SPDX-License-Identifier: Apache-2.0
"""Has every setting answer every question, and keeps what was said, so that a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from fastmmoe import __version__
from fastmmoe.calibration.report.questions import Questions
from fastmmoe.calibration.report.settings import LABELS, Planner, Setting
from fastmmoe.exporter.progress import duration_text
from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.onnxruntime import ONNXRUNTIME_VERSION
from fastmmoe.runtime.bundle.manifest import MANIFEST, file_entry
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import write_atomically
from fastmmoe.runtime.method.policy import RANDOM
from fastmmoe.runtime.types import Array, Say

PACK = 2
"""Questions of one picture in a call. On the demo model two take 5 to 20% less time than one by one, three no less
than two, six more: rows of one question are computed against those of the others, too."""
FOLDER = "measured"


class Outcomes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers of a setting.

    Attributes:
        identity: see `Store`.
        seed: method random's, else 0.
        answers: one for each question.
    """

    identity: str
    setting: Setting
    seed: int
    answers: tuple[str, ...]


class Store:
    """The folder of what was measured with one bundle on one data set: a file for each setting and seed.

    Attributes:
        identity: SHA-256 of what the answers depend on: the bundle's manifest, which holds the hashes of its files, the
            questions, and the versions of fastmmoe and ONNX Runtime.
    """

    def __init__(self, directory: Path, bundle: Path, questions: Questions) -> None:
        self.bundle_identity = file_entry(bundle / MANIFEST).sha256
        versions = (__version__, ONNXRUNTIME_VERSION)
        parts = (self.bundle_identity, questions.identity, str(questions.max_new_tokens), *versions)
        self.identity = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        self.folder = directory / FOLDER / self.identity[:16]

    def read(self, setting: Setting, seed: int, say: Say) -> Outcomes | None:
        """What was measured before; None where nothing was, or what is left of it is damaged, of which `say` is told.

        Raises:
            InvalidRequest: the file belongs to something else.
        """
        path = self._path(setting, seed)
        if not path.is_file():
            return None
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Outcomes)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            say(f"{path}: damaged ({error}): measured again")
            return None
        if (found.identity, found.setting, found.seed) != (self.identity, setting, seed):
            raise InvalidRequest(f"{path}: holds {found.setting.name} of another bundle or data set: remove it")
        return found

    def write(self, outcomes: Outcomes) -> None:
        """Keep them; the file appears complete or not at all."""
        write_atomically(self._path(outcomes.setting, outcomes.seed), msgspec.json.encode(outcomes))

    def _path(self, setting: Setting, seed: int) -> Path:
        return self.folder / f"{setting.name}-seed{seed}.json"


class Measurement:
    """Measures settings, several threads at once.

    Args:
        backend: loaded for one thread each.
        seeds: those of method random, whose outcomes are averaged.
        say: gets a line for each setting.
    """

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        questions: Questions,
        store: Store,
        *,
        seeds: Sequence[int],
        jobs: int,
        say: Say,
    ) -> None:
        self._backend, self._planner, self._questions, self._store = backend, planner, questions, store
        self._seeds, self._jobs, self._say = seeds, jobs, say
        self._own: dict[tuple[Setting, int], Outcomes] = {}

    def run(self, settings: Sequence[Setting]) -> dict[Setting, Array]:
        """Right answers of every setting, [questions] float64: 1 or 0, a mean over seeds for method random."""
        todo = [(setting, seed) for setting in settings for seed in self._seeds_of(setting)]
        found = {one: self._own.get(one) or self._store.read(*one, self._say) for one in todo}
        missing = [one for one in todo if found[one] is None]
        # What this command measured before is no news.
        before = len(todo) - len(missing) - len(self._own.keys() & {*todo})
        if before:
            self._say(f"{before} of {len(todo)} runs are in {self._store.folder} already")
        start = time.monotonic()
        for count, (setting, seed) in enumerate(missing, start=1):
            outcomes = self._measure(setting, seed)
            self._store.write(outcomes)
            found[setting, seed] = self._own[setting, seed] = outcomes
            left = (time.monotonic() - start) / count * (len(missing) - count)
            which = f", seed {seed}" if setting.variant == RANDOM else ""
            self._say(
                f"[{count}/{len(missing)}] {LABELS[setting.variant]} at retention {setting.retention:g}{which}: "
                f"{self._is_right(outcomes).mean():.1%} right, {duration_text(left)} left"
            )
        right = {one: self._is_right(outcomes) for one, outcomes in found.items() if outcomes is not None}
        return {s: np.mean([right[s, seed] for seed in self._seeds_of(s)], axis=0) for s in settings}

    def _seeds_of(self, setting: Setting) -> Sequence[int]:
        return self._seeds if setting.variant == RANDOM else (0,)

    def _measure(self, setting: Setting, seed: int) -> Outcomes:
        questions = self._questions
        packs = list(questions.packs(PACK))
        pool = ThreadPoolExecutor(self._jobs)
        try:
            found = pool.map(lambda p: questions.ask(self._backend, self._planner, setting, p, seed), packs)
            answers = tuple(text for texts in found for text in texts)
        finally:
            # After an interrupt the packs that wait are not asked.
            pool.shutdown(cancel_futures=True)
        return Outcomes(identity=self._store.identity, setting=setting, seed=seed, answers=answers)

    def _is_right(self, outcomes: Outcomes) -> Array:
        expected = [question.sample.answer for question in self._questions.items]
        return np.array([a == b for a, b in zip(outcomes.answers, expected, strict=True)], np.float64)
