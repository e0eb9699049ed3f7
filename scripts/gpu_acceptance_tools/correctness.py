# SPDX-License-Identifier: Apache-2.0
"""Every kernel on the cases of the tests: against the references, within guard zones, and twice with the same bits."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable

from gpu_acceptance_tools.kernels import KernelError, Kernels
from gpu_acceptance_tools.operators import POISONS, Subject, smallest, subjects
from gpu_acceptance_tools.report import Recorder
from gpu_acceptance_tools.work import REPOSITORY, Work

LONGEST = 300


def run(work: Work, record: Recorder) -> None:
    """A check for each operator, type and format of weights."""
    groups: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects(is_rehearsal=work.is_rehearsal):
        groups[subject.group].append(subject)
    kernels = Kernels(work.library, work.device)
    for group, members in groups.items():
        wrong = [f"{member.name}: {failure}" for member in members if (failure := try_out(kernels, member))]
        record.check(group, not wrong, "; ".join(wrong[:2])[:LONGEST] or f"{len(members)} cases", "as the reference")
        record.measure("cases", len(members), "cases", group=group, wrong=len(wrong))


def try_out(kernels: Kernels, subject: Subject) -> str:
    """What is wrong with a case, or nothing."""
    try:
        first = subject.call(kernels, POISONS[0], False)
        if subject.call(kernels, POISONS[1], True) != first:
            return "other bits the second time"
    except (AssertionError, KernelError) as error:
        return " ".join(str(error).split())
    return ""


def launch_smallest(arguments: Iterable[str]) -> int:
    """Run the smallest cases without judging them: what sanitizers look at.

    python -m gpu_acceptance_tools.correctness LIBRARY DEVICE
    """
    from pathlib import Path

    import torch

    library, device = arguments
    kernels = Kernels(Path(library), torch.device(device))
    for subject in smallest():
        subject.call(kernels, POISONS[0], True)
    print("done")
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY)]
    sys.exit(launch_smallest(sys.argv[1:]))
