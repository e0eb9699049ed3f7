# SPDX-License-Identifier: Apache-2.0
"""Starts each section in a process of its own: what breaks one, or hangs in it, leaves the next alone."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gpu_acceptance_tools.plan import RUN_S, Planned, named, of_run
from gpu_acceptance_tools.report import (
    REPORT,
    SCHEMA,
    Recorder,
    Report,
    Section,
    Unavailable,
    exit_code,
    read_section,
    summary,
    write_json,
)
from gpu_acceptance_tools.work import REPOSITORY, Work, tail

SCRIPT = REPOSITORY / "scripts" / "gpu_acceptance.py"
LONGEST_ERROR = 600
Say = Callable[[str], object]


def run_all(run: int, work: Work, *, sections: Sequence[Planned] = (), limit_s: float = 0, say: Say = print) -> int:
    """Run the sections of a run, and write the report after each; the exit code (`exit_code`).

    Args:
        sections: instead of those of the run.
        limit_s: seconds for all of them; 0 = what is planned. Rehearsals have no such limit.
    """
    sections = list(sections) or of_run(run)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report = Report(SCHEMA, run, work.is_rehearsal, started, [section.name for section in sections], [])  # type: ignore[arg-type]
    work.out.mkdir(parents=True, exist_ok=True)
    work.scratch.mkdir(parents=True, exist_ok=True)
    limit = limit_s or (float("inf") if work.is_rehearsal else RUN_S[run])
    end = time.monotonic() + limit
    for section in sections:
        budget = min(section.budget(is_rehearsal=work.is_rehearsal), end - time.monotonic())
        report.sections.append(run_apart(section, run, work, budget))
        write_json(work.out / REPORT, report)
        say(summary(msgspec.structs.replace(report, sections=report.sections[-1:])))
    return exit_code(report)


def run_apart(section: Planned, run: int, work: Work, budget: float) -> Section:
    """One section in a process of its own, which is ended with all that it started when the budget is used up."""
    file = work.scratch / f"{section.name}.json"
    recorder = Recorder(file, section.name, budget)
    if budget <= 0:
        recorder.section.budget_s = 0.0
        recorder.end("timeout", "not started: the run's time was used up")
        return recorder.section
    recorder.write()
    command = [sys.executable, str(SCRIPT), "--run", str(run), "--section", section.name, "--budget", str(budget)]
    command += ["--out", str(work.out), "--scratch", str(work.scratch), *["--rehearse"][: work.is_rehearsal]]
    start = time.monotonic()
    with (work.scratch / f"{section.name}.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True)
        try:
            code: int | None = process.wait(budget)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        said = tail(log.read())[-LONGEST_ERROR:]
    found = read_section(file)
    found.seconds = round(time.monotonic() - start, 2)
    if code is None:
        found.status, found.error = "timeout", f"its {budget:.0f} s were used up; what it had found is here"
    elif code != 0 or found.status == "timeout":
        found.status, found.error = "error", f"its process ended with {code}: {said}"
    return found


def run_section(name: str, work: Work, budget: float) -> int:
    """What the process of a section does: 0 where it could write its end down."""
    recorder = Recorder(work.scratch / f"{name}.json", name, budget)
    # A fault in a library says where Python was.
    import faulthandler

    faulthandler.enable()
    try:
        named(name).function()(work, recorder)
    except Unavailable as error:
        recorder.end("unavailable", str(error))
    except Exception as error:  # noqa: BLE001  (whatever it is, it is written down, and the next section goes on)
        import traceback

        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        recorder.end("error", f"{type(error).__name__} at {place}: {' '.join(str(error).split())}"[:LONGEST_ERROR])
    else:
        recorder.end()
    return 0
