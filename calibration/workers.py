# SPDX-License-Identifier: Apache-2.0
"""Evaluates settings in several processes: of this machine, or of a Dask or Ray cluster, by joblib's backend switch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import joblib

from fastmmoe.calibration.evaluate import Evaluator, Kind, Outcomes
from fastmmoe.calibration.options import CalibrationOptions
from fastmmoe.calibration.prompts import Prompts
from fastmmoe.calibration.torch_model import TorchModel, torch_threads
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import InvalidRequest

Evaluate: TypeAlias = Callable[[Sequence[PolicyOptions], "int | None"], "list[Outcomes]"]


@dataclass(frozen=True)
class Job:
    """Inputs of a worker that judges settings. Both paths are read by the workers.

    Attributes:
        identity, digest: of the checkpoint and of the file of prompts; with the paths they tell what a process has
            loaded already.
        threads: threads of torch; the results depend on it in their last bits.
    """

    checkpoint: Path
    identity: str
    prompts: Path
    digest: str
    kind: Kind
    threads: int

    def evaluate(self, options: PolicyOptions, count: int | None) -> Outcomes:
        """Outcomes of the first `count` questions. A process loads the model at its first call only."""
        with torch_threads(self.threads):
            return _evaluator(self).outcomes(options, count)


@functools.lru_cache(maxsize=2)
def _evaluator(job: Job) -> Evaluator:
    """At most two, as the search and the comparison ask different questions of one model."""
    return Evaluator(load_model(job.checkpoint, job.identity), Prompts.load(job.prompts), job.kind)


@functools.lru_cache(maxsize=1)
def load_model(checkpoint: Path, identity: str) -> TorchModel:
    """The model of a checkpoint, loaded once in a process.

    Raises:
        InvalidRequest: the directory holds another checkpoint than the one of this identity.
    """
    model = TorchModel(checkpoint)
    if model.identity != identity:
        raise InvalidRequest(
            f"{checkpoint}: this worker sees another checkpoint ({model.identity[:12]}) there than the one that is "
            f"calibrated ({identity[:12]}): give all machines the same files"
        )
    return model


@contextmanager
def worker_pool(options: CalibrationOptions) -> Iterator[joblib.Parallel]:
    """A pool on the backend of the options, which evaluates in any order and answers in the order asked.

    Raises:
        InvalidRequest: the backend's package is not installed, or the cluster cannot be reached.
    """
    if options.backend == "dask":
        with (
            _dask_client(options.scheduler),
            joblib.parallel_config(backend="dask", n_jobs=-1),
            joblib.Parallel() as pool,
        ):
            yield pool
    elif options.backend == "ray":
        _connect_ray(options.scheduler)
        with joblib.parallel_config(backend="ray", n_jobs=-1), joblib.Parallel() as pool:
            yield pool
    else:
        with joblib.parallel_config(backend="loky", n_jobs=options.worker_count), joblib.Parallel() as pool:
            yield pool


def evaluator_of(pool: joblib.Parallel, job: Job) -> Evaluate:
    """Function (settings, count) -> outcomes of each, in the same order."""

    def evaluate(settings: Sequence[PolicyOptions], count: int | None) -> list[Outcomes]:
        outcomes: list[Outcomes] = pool(joblib.delayed(job.evaluate)(options, count) for options in settings)
        return outcomes

    return evaluate


def _dask_client(scheduler: str | None) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidRequest("--backend dask: pip install 'dask[distributed]'") from error
    try:
        return Client(scheduler)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error


def _connect_ray(scheduler: str | None) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise InvalidRequest("--backend ray: pip install 'ray[default]'") from error
    try:
        ray.init(address=scheduler)
    except ConnectionError as error:
        raise InvalidRequest(f"--scheduler {scheduler}: no Ray cluster answers there ({error})") from error
    register_ray()
