# SPDX-License-Identifier: Apache-2.0
"""Workers in other processes, of this machine or of a cluster, judge settings as this process does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastmmoe.calibration.options import CalibrationOptions
from fastmmoe.calibration.prompts import Prompts
from fastmmoe.calibration.search import Search, Trial
from fastmmoe.calibration.space import Space
from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.calibration.workers import Job, evaluator_of, worker_pool
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import InvalidRequest

NAME = "dsvl2-mha"
TRIALS = 5


@pytest.fixture
def job(golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts], tmp_path: Path) -> Job:
    """Four questions to the golden checkpoint."""
    model, path = golden_model(NAME), tmp_path / "prompts.npz"
    digest = golden_prompts(NAME).save(path)
    return Job(model.model.checkpoint.path, model.identity, path, digest, "kl", 1)


def search(model: TorchModel, job: Job, journal: Path, options: CalibrationOptions) -> list[Trial]:
    space = Space(model.layers, model.resolve(PolicyOptions()))
    found = Search(journal, {"seed": 0}, space, lambda o: o.retention, [space.default_params(0.5)], lambda _: None)
    with worker_pool(options) as pool:
        found.run(TRIALS, evaluator_of(pool, job), 2)
    return found.trials


def test_prompts_come_back_from_their_file(golden_prompts: Callable[[str], Prompts], tmp_path: Path) -> None:
    prompts = golden_prompts(NAME)
    answered = replace(prompts.questions[0], answer_ids=np.array([3, 4], np.int32))
    prompts = Prompts((answered, *prompts.questions[1:]), prompts.features)
    digest = prompts.save(tmp_path / "a.npz")
    assert prompts.save(tmp_path / "b.npz") == digest
    loaded = Prompts.load(tmp_path / "a.npz")
    assert loaded.sizes == prompts.sizes
    for ours, theirs in zip(prompts.questions, loaded.questions, strict=True):
        np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
        np.testing.assert_array_equal(ours.visual_index, theirs.visual_index)
        assert (ours.picture, ours.scene) == (theirs.picture, theirs.scene)
    assert [q.answer_ids is None for q in loaded.questions] == [False, True, True, True]
    np.testing.assert_array_equal(loaded.features, prompts.features)


def test_processes_and_a_dask_cluster_try_the_same(
    golden_model: Callable[[str], TorchModel], job: Job, tmp_path: Path
) -> None:
    import dask
    from distributed import LocalCluster

    model = golden_model(NAME)
    here = search(model, job, tmp_path / "here", CalibrationOptions(jobs=1))
    # A busy machine answers late, which is no failure.
    timeouts = {"distributed.comm.timeouts.connect": "300s", "distributed.comm.timeouts.tcp": "300s"}
    with (
        dask.config.set(timeouts),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
    ):
        options = CalibrationOptions(backend="dask", scheduler=cluster.scheduler_address)
        on_dask = search(model, job, tmp_path / "dask", options)
    assert on_dask == here
    assert search(model, job, tmp_path / "loky", CalibrationOptions(jobs=2)) == here


def test_a_worker_with_another_checkpoint_is_refused(job: Job) -> None:
    with pytest.raises(InvalidRequest, match="this worker sees another checkpoint"):
        replace(job, identity="0" * 64).evaluate(PolicyOptions(), 1)


def test_no_scheduler(job: Job) -> None:
    options = CalibrationOptions(backend="dask", scheduler="nonsense://x")
    with (
        pytest.raises(InvalidRequest, match="--scheduler nonsense://x: no Dask scheduler answers there"),
        worker_pool(options),
    ):
        pass
