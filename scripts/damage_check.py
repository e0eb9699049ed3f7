# SPDX-License-Identifier: Apache-2.0
"""Damage checkpoints and bundles in every way that comes to mind, and see what the commands make of them.

    python scripts/damage_check.py [--trials 2000] [--seed 0] [--exports 12] [--only TEXT] [--write docs/damage.md]

Each trial damages a copy (scripts/damage_tools/damages.py) and runs a command on it in a process of its own:
checkpoints go through fastmmoe-export up to the first trace, bundles through fastmmoe run to two answers. Right is an
error of one line and exit code 2; or, for a bundle, exactly the answer of the undamaged one; or, for a checkpoint, that
tracing begins, where the damage made another legal checkpoint. Some of those are exported whole. Wrong is everything
else: a traceback, a crash, another answer with exit code 0, more than 10 s or 1 GB. Exit code 1 where anything was
wrong; each such trial is printed with its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from damage_tools import damages, subjects, trials
from markers import table, write_part

MOST_SECONDS, MOST_MEGABYTES = 10.0, 1000.0
MOST_EXPORT_SECONDS = 1200.0
SCRIPTS = Path(__file__).resolve().parent
EXPORT_AND_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from damage_tools import subjects
sys.exit(subjects.export_and_run(Path(sys.argv[2]), Path(sys.argv[3])))
"""
USER_ERROR = 2
PART = "damage_check"


@dataclass(frozen=True)
class Trial:
    """One damage of one thing: what came of it, and what is wrong with that ("" = nothing)."""

    subject: str
    kind: str
    seed: int
    damage: str
    verdict: str
    problem: str
    seconds: float
    megabytes: float
    last_line: str


@dataclass
class Results:
    """All trials so far, and the checkpoints whose damage was legal, up to a number."""

    trials: list[Trial] = field(default_factory=list)
    legal: list[Path] = field(default_factory=list)


def judge(outcome: trials.Outcome, *, has_limits: bool = True) -> tuple[str, str]:
    """(verdict, problem) of one process. has_limits: of time and memory."""
    lines = outcome.err.splitlines()
    errors = [line for line in lines if ": error: " in line]
    if outcome.signal is not None:
        return "wrong", f"ended by signal {outcome.signal} after {outcome.seconds:.1f} s"
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        return "wrong", "traceback"
    if outcome.code == subjects.DIFFERS:
        return "wrong", "another answer, exit code 0"
    verdict = {0: "same answer", subjects.REACHED_TRACING: "legal", USER_ERROR: "refused"}.get(
        outcome.code or 0, "wrong"
    )
    if verdict == "wrong":
        return verdict, f"exit code {outcome.code}"
    if verdict == "refused" and (len(errors) != 1 or errors[0] != lines[-1]):
        return "wrong", f"{len(lines)} lines on stderr with {len(errors)} errors, expected one at the end"
    if has_limits and outcome.megabytes > MOST_MEGABYTES:
        return "wrong", f"{outcome.megabytes:.0f} MB"
    if has_limits and outcome.seconds > MOST_SECONDS:
        return "wrong", f"{outcome.seconds:.1f} s"
    return verdict, ""


def draw(kinds: dict[str, tuple[int, damages.Damage]], rng: random.Random) -> str:
    """A kind, by the shares."""
    return rng.choices(list(kinds), [share for share, _ in kinds.values()])[0]


def try_damage(
    base: Path,
    kinds: dict[str, tuple[int, damages.Damage]],
    seed: int,
    run: Callable[[Path, Path], int],
    scratch: Path,
) -> tuple[Trial, Path]:
    """Damage a copy of `base` and run a command on it. The copy is returned, for whoever goes on with it."""
    rng = random.Random(seed)
    kind = draw(kinds, rng)
    copy = damages.copy_of(base, scratch / "copy")
    if kinds[kind][1] is damages.change_unseen:
        (scratch / "before").mkdir()
        first = trials.run_forked(lambda: run(copy, scratch), scratch / "before")
        if first.code != 0:
            raise SystemExit(f"the undamaged {base.name} does not answer: {first.err}")
    damage = kinds[kind][1](rng, copy)
    (scratch / "trial").mkdir()
    outcome = trials.run_forked(lambda: run(copy, scratch), scratch / "trial")
    verdict, problem = judge(outcome)
    last = (outcome.err.splitlines() or outcome.out.splitlines() or [""])[-1]
    return (
        Trial(base.name, kind, seed, damage, verdict, problem, outcome.seconds, outcome.megabytes, last),
        copy,
    )


def run_all(
    bases: list[Path],
    kinds: dict[str, tuple[int, damages.Damage]],
    seeds: range,
    run: Callable[[Path, Path], int],
    work: Path,
    keep: int,
) -> Results:
    """One trial for each seed, the bases in turn."""
    results = Results()
    for seed in seeds:
        scratch = Path(tempfile.mkdtemp(dir=work))
        trial, copy = try_damage(bases[seed % len(bases)], kinds, seed, run, scratch)
        results.trials.append(trial)
        if trial.problem:
            print(
                f"WRONG {trial.subject} seed {seed}: {trial.damage}: {trial.problem}\n  {trial.last_line[:300]}",
                flush=True,
            )
        if trial.verdict == "legal" and len(results.legal) < keep:
            results.legal.append(copy.rename(work / f"legal-{seed}"))
        shutil.rmtree(scratch)
        if len(results.trials) % 100 == 0:
            print(f"{len(results.trials)} of {len(seeds)} trials", flush=True)
    return results


def export_legal(checkpoints: list[Path], work: Path) -> list[Trial]:
    """Export damaged but legal checkpoints whole; time and memory have no limit here."""
    results = []
    for checkpoint in checkpoints:
        scratch = Path(tempfile.mkdtemp(dir=work))
        program = [sys.executable, "-c", EXPORT_AND_RUN, str(SCRIPTS), str(checkpoint), str(scratch / "bundle")]
        outcome = trials.run_program(program, scratch, seconds=MOST_EXPORT_SECONDS)
        verdict, problem = judge(outcome, has_limits=False)
        # There is no answer from before the damage to compare with.
        verdict = "legal" if verdict == "same answer" else verdict
        last = (outcome.err.splitlines() or [""])[-1]
        results.append(
            Trial(checkpoint.name, "exported whole", 0, "", verdict, problem, outcome.seconds, outcome.megabytes, last)
        )
        print(f"{checkpoint.name} exported whole: {verdict} {problem} {last[:200]}", flush=True)
        shutil.rmtree(scratch)
    return results


def results_table(results: dict[str, list[Trial]]) -> str:
    """A row for each kind of damage."""
    head = ("what", "damage", "trials", "refused in one line", "as before", "legal", "wrong", "slowest s", "most MB")
    rows = []
    for what, all_trials in results.items():
        for kind in dict.fromkeys(sorted(t.kind for t in all_trials)):
            of_kind = [t for t in all_trials if t.kind == kind]
            counts = [sum(t.verdict == v for t in of_kind) for v in ("refused", "same answer", "legal", "wrong")]
            most = (f"{max(t.seconds for t in of_kind):.1f}", f"{max(t.megabytes for t in of_kind):.0f}")
            rows.append((what, kind, str(len(of_kind)), *map(str, counts), *most))
    return table(head, rows)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Damage checkpoints and bundles, and see what the commands make of them."
    )
    parser.add_argument("--trials", type=int, default=2000, help="three fifths checkpoints, the rest bundles")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each has its own")
    parser.add_argument("--exports", type=int, default=12, help="legal checkpoints to export whole")
    parser.add_argument("--only", choices=("checkpoints", "bundles"))
    parser.add_argument("--bundle", type=Path, help="an undamaged bundle of the built-in model (default: make one)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this document")
    return parser.parse_args()


def main() -> int:
    """Exit code 0 where every trial ended as it should."""
    arguments = parse_arguments()
    results: dict[str, list[Trial]] = {}
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        work = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        count = arguments.trials * 3 // 5
        if arguments.only != "bundles":
            seeds = range(arguments.seed, arguments.seed + (arguments.trials if arguments.only else count))
            bases = subjects.write_checkpoints(work)
            of_checkpoints = run_all(
                bases,
                damages.CHECKPOINT_DAMAGES,
                seeds,
                lambda copy, scratch: subjects.read_checkpoint(copy, scratch / "out"),
                work,
                arguments.exports,
            )
            results["checkpoint"] = of_checkpoints.trials
        if arguments.only != "checkpoints":
            results["bundle"] = bundle_trials(
                arguments, work, arguments.trials if arguments.only else arguments.trials - count
            )
        if arguments.only != "bundles" and arguments.exports:
            results["legal checkpoint"] = export_legal(of_checkpoints.legal, work)
    text = results_table(results)
    print(text)
    if arguments.write is not None:
        write_part(arguments.write, PART, text)
    return int(any(t.problem for each in results.values() for t in each))


def bundle_trials(arguments: argparse.Namespace, work: Path, count: int) -> list[Trial]:
    """Trials on a bundle of the built-in model."""
    bundle, references = work / "bundle", work / "references"
    if arguments.bundle is not None:
        shutil.copytree(arguments.bundle, bundle)
    elif code := subjects.make_bundle(bundle):
        raise SystemExit(code)
    (work / "record").mkdir()
    outcome = trials.run_forked(lambda: subjects.record_answers(bundle, references), work / "record")
    if outcome.code != 0:
        raise SystemExit(f"the undamaged bundle does not answer: {outcome.err}")
    seeds = range(arguments.seed, arguments.seed + count)
    return run_all(
        [bundle],
        damages.BUNDLE_DAMAGES,
        seeds,
        lambda copy, scratch: subjects.answer_again(copy, references, scratch),
        work,
        0,
    ).trials


if __name__ == "__main__":
    sys.exit(main())
