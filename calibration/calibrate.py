# SPDX-License-Identifier: Apache-2.0
"""checkpoint and questions -> policy.json: record, search, compare, choose, confirm on the exported graph."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from fastmmoe import __version__
from fastmmoe.calibration.activations import ActivationRecorder, write_activations
from fastmmoe.calibration.choose import Candidate, candidates_for
from fastmmoe.calibration.confirm import Confirmed, LatencyModel, confirm, export_with, measure_latency
from fastmmoe.calibration.cost import Cost
from fastmmoe.calibration.data import Sample, identity_of
from fastmmoe.calibration.evaluate import FULL_MODEL, Evaluator, Outcomes, run_prompts
from fastmmoe.calibration.front import first_fronts
from fastmmoe.calibration.options import CalibrationFailed, CalibrationOptions
from fastmmoe.calibration.prompts import AnswerStart, Prompts, answer_starts, prepare
from fastmmoe.calibration.routing_statistics import record_statistics
from fastmmoe.calibration.samples import Data, load_data
from fastmmoe.calibration.search import JOURNAL, Search
from fastmmoe.calibration.space import Space
from fastmmoe.calibration.summary import Comparison, Findings, front_points, summary, write_front
from fastmmoe.calibration.torch_model import TorchModel, hash_values, torch_threads
from fastmmoe.calibration.workers import Evaluate, Job, evaluator_of, load_model, worker_pool
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.config import checkpoint_directory
from fastmmoe.exporter.pruning.policy_file import PolicyFile, write_policy
from fastmmoe.exporter.pruning.settings import PolicyModel, PolicyOptions
from fastmmoe.runtime.cost.budget import STEPS
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import write_atomically
from fastmmoe.runtime.types import Say

STATISTICS_FILE, FRONT_FILE, SUMMARY_FILE, POLICY_FILE = (
    "statistics.json",
    "front.json",
    "calibration.md",
    "policy.json",
)
DEFAULT_RETENTIONS = (0.9, 0.75, 0.5, 0.35, 0.25, 0.1)
COMPARED_FRONTS = 2
"""Trials on the first fronts are compared on all questions: the best of few questions need not be the best of all."""
SPELLING_QUESTIONS = 32
CONFIRM_ATTEMPTS = 3


@dataclass(frozen=True)
class _Setup:
    """A calibration whose model is loaded and whose questions are prepared."""

    options: CalibrationOptions
    checkpoint: Path
    scratch: Path
    model: TorchModel
    data: Data
    prompts: Prompts
    held_out: Prompts
    cost: Cost
    space: Space
    say: Say

    def cost_of(self, options: PolicyOptions) -> float:
        """FLOPs of settings as a share of the full model's, on the calibration questions."""
        return 1 - self.cost.reduction(self.model.resolve(options))

    def job(self, prompts: Prompts, name: str) -> Job:
        """What workers need for these questions."""
        path = self.scratch / f"{name}.npz"
        digest = prompts.save(path)
        return Job(self.checkpoint, self.model.identity, path, digest, self.data.kind, self.options.threads)


def calibrate(options: CalibrationOptions, say: Say = print) -> Path:
    """Find settings and write them with what was found on the way.

    Args:
        say: is called with a line for each step.
    Returns:
        The directory with policy.json, front.json, calibration.md and statistics.json; with `activations`, with
        activations.json and activations.safetensors only.
    Raises:
        InvalidRequest, UnsupportedModel: options, data or checkpoint do not fit.
        CalibrationFailed: nothing meets the goal, or the exported graph does not confirm it.
    """
    options.validate()
    out, checkpoint = options.directory, checkpoint_directory(options.model).absolute()
    identity, data = Checkpoint(checkpoint).identity, load_data(options)
    # Not before what a user may have mistyped is known to be good.
    out.mkdir(exist_ok=True)
    # Workers read the questions from here.
    scratch_directory = tempfile.TemporaryDirectory(prefix=".calibrate.", dir=out.absolute())
    with scratch_directory as scratch, torch_threads(options.threads):
        model = load_model(checkpoint, identity)
        say(f"{options.data}: {len(data.calibration)} questions, {len(data.held_out)} held out; {data.note}")
        if options.activations:
            _record_activations(model, data.calibration, out, say)
            return out
        setup = _set_up(options, checkpoint, Path(scratch), model, data, say)
        _record_statistics(setup, out)
        with worker_pool(options) as pool:
            _search_and_write(setup, pool, out)
    return out


def _set_up(
    options: CalibrationOptions, checkpoint: Path, scratch: Path, model: TorchModel, data: Data, say: Say
) -> _Setup:
    start = _answer_start(model, data) if data.kind == "accuracy" else ()
    prompts = prepare(model, data.calibration, start)
    held_out = prepare(model, data.held_out, start)
    cost = Cost(model.info, prompts.sizes)
    space = Space(model.layers, model.resolve(PolicyOptions()))
    return _Setup(options, checkpoint, scratch, model, data, prompts, held_out, cost, space, say)


def _answer_start(model: TorchModel, data: Data) -> AnswerStart:
    """What the full model itself puts in front of its answers, by how probable it makes the right ones."""

    def probability(start: AnswerStart) -> float:
        prompts = prepare(model, data.calibration[:SPELLING_QUESTIONS], start)
        return float(Evaluator(model, prompts, "accuracy").outcomes(FULL_MODEL).probabilities.mean())

    return max(answer_starts(model), key=probability)


def _record_statistics(setup: _Setup, out: Path) -> None:
    found = record_statistics(setup.model, setup.prompts, setup.options.search_questions)
    write_atomically(out / STATISTICS_FILE, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    setup.say(f"wrote {out / STATISTICS_FILE}: routing and attention of {len(found.layers)} MoE layers")


def _record_activations(model: TorchModel, samples: Sequence[Sample], out: Path, say: Say) -> None:
    decoder = model.decoder(model.resolve(FULL_MODEL))
    recorder = ActivationRecorder(model, decoder)
    with recorder.recording():
        prompts = prepare(model, samples)
        for _ in run_prompts(model, decoder, prompts):
            pass
    activations, channels = recorder.finished(len(samples))
    write_activations(out, activations, channels)
    say(
        f"wrote activations of {len(activations.ranges)} linear layers in {out}; "
        f"{len(activations.unreached)} of experts that no token reached"
    )
    for name in activations.unreached:
        say(f"no token reached {name}")


def _search_and_write(setup: _Setup, pool: Any, out: Path) -> None:
    evaluate = evaluator_of(pool, setup.job(setup.prompts, "calibration"))
    evaluate_held_out = evaluator_of(pool, setup.job(setup.held_out, "held-out"))
    full = evaluate([FULL_MODEL], None)[0]
    _check_full(setup, full)
    search = _search(setup, out)
    search.run(setup.options.trials, evaluate, setup.options.search_questions)
    candidates = _compare(setup, search, evaluate)
    latency = _latency(setup) if setup.options.goal[0] == "max_ttft_ms" else None
    chosen, confirmed = _choose(setup, candidates, full, latency)
    default, default_cost = _default_like(setup, chosen.cost)
    held_out_full, held_out_default, held_out_chosen = evaluate_held_out([FULL_MODEL, default, chosen.options], None)
    comparisons = (
        Comparison("Calibration data", setup.prompts.scenes, full, evaluate([default], None)[0], chosen.outcomes),
        Comparison(
            "Data that the search has not seen",
            setup.held_out.scenes,
            held_out_full,
            held_out_default,
            held_out_chosen,
        ),
    )
    findings = Findings(
        kind=setup.data.kind,
        options=setup.options,
        chosen=chosen,
        default=default,
        default_cost=default_cost,
        comparisons=comparisons,
        confirmed=confirmed,
        predicted_ms=None if latency is None else latency.predict(_flops(setup, chosen.cost)),
        candidates=len(candidates),
        trials=len(search.trials),
    )
    points = front_points(candidates, setup.prompts.scenes, setup.options.seed)
    write_front(out / FRONT_FILE, setup.data.kind, len(setup.prompts.questions), full, points)
    text = summary(findings)
    write_atomically(out / SUMMARY_FILE, text.encode())
    write_policy(out / POLICY_FILE, _policy_file(setup.model, chosen.options))
    setup.say(text)
    next_step = shlex.join(["fastmmoe-export", setup.options.model, "OUT", "--policy", str(out / POLICY_FILE)])
    setup.say(f"wrote {out / POLICY_FILE}: {next_step}")


def _check_full(setup: _Setup, full: Outcomes) -> None:
    setup.say(f"full model: quality {full.quality:.4f} on {len(full.values)} questions")
    if full.quality == 0:
        raise InvalidRequest(
            f"the full model answers 0 of {len(full.values)} questions rightly, so no settings can keep any: check the "
            "answers' spelling, or give --quality kl"
        )


def _search(setup: _Setup, out: Path) -> Search:
    options, model = setup.options, setup.model
    identity = {
        "seed": options.seed,
        "version": __version__,
        "checkpoint": hash_values(model),
        "questions": identity_of(setup.data.calibration),
        "quality": setup.data.kind,
        "search_questions": options.search_questions,
    }
    first = [setup.space.default_params(R) for R in DEFAULT_RETENTIONS]
    return Search(out / JOURNAL, identity, setup.space, setup.cost_of, first, setup.say)


def _compare(setup: _Setup, search: Search, evaluate: Evaluate) -> list[Candidate]:
    """The best trials, as they are and at the goal's FLOPs, and the default schedules, on all calibration questions."""
    trials = search.trials
    chosen = first_fronts([(t.score, t.cost) for t in trials], COMPARED_FRONTS)
    places = sorted({*chosen, *range(min(search.defaults, len(trials)))})
    names = {}
    for trial in (trials[place] for place in places):
        if trial.number < search.defaults:
            names[trial.options] = f"default at {trial.options.retention:g}"
            continue
        names[trial.options] = f"trial {trial.number}"
        tuned = _at_goal(setup, trial.options)
        if tuned is not None:
            names.setdefault(tuned, f"trial {trial.number} at retention {tuned.retention:g}")
    default = _at_goal(setup, setup.space.options(setup.space.default_params(0.5)))
    if default is not None:
        names.setdefault(default, f"default at {default.retention:g}")
    setup.say(f"comparing {len(names)} settings on all {len(setup.prompts.questions)} questions")
    outcomes = evaluate(list(names), None)
    return [
        Candidate(name, options, setup.cost_of(options), found)
        for (options, name), found in zip(names.items(), outcomes, strict=True)
    ]


def _at_goal(setup: _Setup, options: PolicyOptions) -> PolicyOptions | None:
    """The settings at the retention that just meets the goal, which trials seldom do; None = there is none."""
    goal, value = setup.options.goal
    if goal != "flops_reduction":
        return None
    retention = setup.cost.retention_for(setup.model.resolve(options), value)
    found: dict[str, Any] = {"retention": retention}
    return None if retention is None else replace(options, **found)


def _flops(setup: _Setup, cost: float) -> float:
    """FLOPs of the mean prompt's prefill."""
    return cost * setup.cost.flops(setup.model.resolve(FULL_MODEL))


def _latency(setup: _Setup) -> LatencyModel:
    default = export_with(setup.checkpoint, PolicyOptions(), setup.scratch / "default")
    found = measure_latency(default, setup.data.calibration)
    times = ", ".join(f"{ms:.1f}" for ms in found.prefill_ms)
    setup.say(f"measured on this machine: prefill {times} ms, before it {found.other_ms:.1f} ms")
    return found


def _choose(
    setup: _Setup, candidates: Sequence[Candidate], full: Outcomes, latency: LatencyModel | None
) -> tuple[Candidate, Confirmed]:
    """The best candidate that the exported graph confirms."""
    goal, value = setup.options.goal
    predict = None if latency is None else lambda cost: latency.predict(_flops(setup, cost))
    fitting = candidates_for(goal, value, candidates, full, predict)
    answers = [len(q.answer_ids) for q in setup.prompts.questions if q.answer_ids is not None]
    for attempt, candidate in enumerate(fitting[:CONFIRM_ATTEMPTS]):
        setup.say(f"confirming {candidate.name} on the exported graph")
        vlm = export_with(setup.checkpoint, candidate.options, setup.scratch / f"chosen-{attempt}")
        most = max(answers, default=0) + 1
        confirmed = confirm(vlm, setup.data.calibration, candidate.outcomes, setup.data.kind, most)
        if goal != "max_ttft_ms" or confirmed.ttft_ms <= value:
            return candidate, confirmed
        setup.say(f"{candidate.name}: measured {confirmed.ttft_ms:.1f} ms, more than {value:g}")
    raise CalibrationFailed(
        f"--max-ttft-ms {value:g}: {min(CONFIRM_ATTEMPTS, len(fitting))} candidates were predicted within it and "
        "measured above it; give more time, or calibrate on an idle machine"
    )


def _default_like(setup: _Setup, cost: float) -> tuple[PolicyOptions, float]:
    """The default schedule that spends no more than this share of the FLOPs, and what it spends."""
    policy = setup.model.resolve(PolicyOptions())
    # Where not even the smallest retention is as cheap, that one is compared; the table shows both costs.
    retention = setup.cost.retention_for(policy, 1 - cost) or 1 / STEPS
    options = setup.space.options(setup.space.default_params(retention))
    return options, setup.cost_of(options)


def _policy_file(model: TorchModel, options: PolicyOptions) -> PolicyFile:
    found_for = PolicyModel(
        family=model.family,
        layers=model.layers.count,
        moe_layers=model.layers.moe,
        top_k=model.layers.top_k,
        checkpoint_identity=model.identity,
    )
    return PolicyFile.of(model.resolve(options), found_for)
