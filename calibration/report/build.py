# SPDX-License-Identifier: Apache-2.0
"""One report from a bundle and a data set: plan, measure, analyse, draw, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from fastmmoe import __version__
from fastmmoe.calibration.data import BUILTIN, load_samples
from fastmmoe.calibration.measure.bootstrap import Bootstrap
from fastmmoe.calibration.report.analysis import (
    Analysis,
    Plan,
    plan_settings,
    recommend,
    settings_by_kind,
    state_claims,
)
from fastmmoe.calibration.report.devices import read_devices, settings_of
from fastmmoe.calibration.report.latency import Latency, measure_latency
from fastmmoe.calibration.report.maps import draw_maps
from fastmmoe.calibration.report.measure import Measurement, Store
from fastmmoe.calibration.report.page import write_pages
from fastmmoe.calibration.report.questions import Questions
from fastmmoe.calibration.report.results import Origin, Report
from fastmmoe.calibration.report.settings import FULL, RETENTIONS, Planner, Setting, curve_settings
from fastmmoe.calibration.scenes import Split
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.threads import check_threads, usable_cores
from fastmmoe.runtime.types import Say
from fastmmoe.runtime.vlm import VLM

DEFAULT_QUESTIONS = 2000
SPLIT: Split = "test"


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        data: "builtin" or a directory, see `load_samples`.
        questions: how many; of a directory None = all.
        retentions: points of the curves, below 1.
        seeds: how many of method random.
        resamples: how many the bootstrap draws.
        seed: data set and bootstrap follow from it.
        requests: how many are measured in time.
        maps: scenes with a picture of what survives.
        jobs: threads; None = one for each core.
        min_quality: the least of the recommended setting.
        bench: results of fastmmoe bench, of the same model on any machine.
        command: shown in the report as what made it.
    """

    data: str
    out: Path
    questions: int | None = None
    retentions: tuple[float, ...] = RETENTIONS
    seeds: int = 3
    resamples: int = 10_000
    seed: int = 0
    requests: int = 40
    maps: int = 3
    jobs: int | None = None
    min_quality: float = 0.955
    bench: tuple[Path, ...] = ()
    command: str = ""

    def check(self) -> None:
        """Raise InvalidRequest for what is outside its range."""
        counts = {"--seeds": self.seeds, "--resamples": self.resamples, "--requests": self.requests}
        optional = {"--questions": self.questions}
        counts |= {name: value for name, value in optional.items() if value is not None}
        for name, value in counts.items():
            if value < 1:
                raise InvalidRequest(f"{name} {value}: expected at least 1")
        if self.jobs is not None:
            check_threads("--jobs", self.jobs, least=1)
        for name, value in {"--maps": self.maps, "--seed": self.seed}.items():
            if value < 0:
                raise InvalidRequest(f"{name} {value}: expected at least 0")
        if not 0 < self.min_quality <= 1:
            raise InvalidRequest(f"--min-quality {self.min_quality}: expected a number in (0, 1]")
        outside = [R for R in self.retentions if not 0 < R < 1]
        if outside or not self.retentions:
            raise InvalidRequest(f"--retentions {outside or 'none'}: expected numbers in (0, 1)")


def build_report(bundle: Path, options: ReportOptions, say: Say = print) -> Report:
    """Measure what was not measured before, and write report.html, report.md, report.json and the figures.

    Args:
        say: gets a line for each step.
    Raises:
        InvalidRequest: options outside their range, a bundle without every method, unusable data, or a model that
            answers nothing right. BundleMismatch: not a bundle for this machine's ONNX Runtime.
    """
    options.check()
    jobs = usable_cores() if options.jobs is None else options.jobs
    vlm = VLM(bundle, threads=1)
    devices = read_devices(options.bench, vlm.manifest)
    samples = load_samples(options.data, split=SPLIT, count=_count(options), seed=options.seed)
    questions = Questions(vlm, samples)
    planner = Planner(vlm.manifest, [question.prompt for question in questions.items])
    plan = plan_settings(planner, curve_settings(options.retentions), settings_of(devices))
    store = Store(options.out, bundle, questions)
    say(f"{len(questions.items)} questions about {questions.pictures} pictures, {len(plan.settings)} settings")
    seeds = tuple(range(options.seeds))
    measurement = Measurement(vlm.backend, planner, questions, store, seeds=seeds, jobs=jobs, say=say)
    if not measurement.run([Setting(FULL)])[Setting(FULL)].any():
        raise InvalidRequest(
            f"the full model answers none of {len(questions.items)} questions right, so there is no accuracy to keep: "
            "expected a trained model, and questions that it can answer"
        )
    right = measurement.run(plan.settings)
    bootstrap = Bootstrap([q.picture for q in questions.items], resamples=options.resamples, seed=options.seed)
    analysis = Analysis(planner, questions, right, bootstrap)
    latency = measure_latency(VLM(bundle), planner, questions, store, plan.settings, requests=options.requests, say=say)
    say(f"intervals from {options.resamples:,} resamples of the scenes")
    report = _analyse(analysis, plan, latency, options, _origin(bundle, vlm, questions, store, latency, options))
    report = replace(report, devices=devices)
    maps = draw_maps(vlm, planner, questions, plan.claimed, options.maps)
    write_pages(options.out, report, maps)
    return report


def _count(options: ReportOptions) -> int | None:
    if options.questions is None and options.data == BUILTIN:
        return DEFAULT_QUESTIONS
    return options.questions


def _analyse(analysis: Analysis, plan: Plan, latency: Latency, options: ReportOptions, origin: Origin) -> Report:
    points = analysis.points(plan.settings, latency)
    comparisons = analysis.comparisons(plan.pairs)
    compared = settings_by_kind(plan)
    claimed = next((point for point in points if point.setting == plan.claimed), None)
    recommendation = recommend(points, options.min_quality, comparisons)
    return Report(
        origin=origin,
        min_quality=options.min_quality,
        points=points,
        claimed=plan.claimed,
        claims=state_claims(claimed, plan.unclaimed, comparisons),
        comparisons=comparisons,
        compared=compared,
        kinds=analysis.kinds(compared),
        recommended=recommendation.setting,
        not_told_apart=recommendation.not_told_apart,
    )


def _origin(
    bundle: Path, vlm: VLM, questions: Questions, store: Store, latency: Latency, options: ReportOptions
) -> Origin:
    manifest = vlm.manifest
    return Origin(
        command=options.command,
        version=__version__,
        bundle=bundle.name,
        model=manifest.model,
        dtype=manifest.dtype,
        bundle_identity=store.bundle_identity,
        checkpoint_identity=manifest.checkpoint_identity,
        prune_layers={str(method): layers for method, layers in manifest.policy.prune_layers.items()},
        data=options.data if options.data == BUILTIN else Path(options.data).name,
        split=SPLIT if options.data == BUILTIN else "",
        data_identity=questions.identity,
        data_seed=options.seed,
        questions=len(questions.items),
        unlabelled=questions.unlabelled,
        scenes=questions.pictures,
        max_new_tokens=questions.max_new_tokens,
        seeds=tuple(range(options.seeds)),
        resamples=options.resamples,
        bootstrap_seed=options.seed,
        requests=options.requests,
        machine=latency.machine,
    )
