# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the demo model by kind of question, and on pairs of colour and shape that it was not trained on.

`fastmmoe-export demo demo-cpu && python scripts/evaluate_demo.py demo-cpu`

With `--beside OUT...` other bundles answer the same questions, and what each loses or gains is given with its 95%
interval, which pairs the answers and resamples the scenes: `fastmmoe-export demo demo-int4 --weights int4 && python
scripts/evaluate_demo.py demo-cpu --beside demo-int4 --questions 2400`
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markers import table

from fastmmoe import VLM
from fastmmoe.calibration.data import Sample, load_samples
from fastmmoe.calibration.measure.bootstrap import Bootstrap, Interval
from fastmmoe.calibration.scenes import COLOR_NAMES, HELD_OUT_PAIRS, SHAPE_NAMES

BATCH = 8
RESAMPLES = 10_000


def names_held_out_pair(sample: Sample) -> bool:
    """Whether question and answer together name a colour and a shape that training never showed in one object."""
    words = set(re.findall(r"\w+", f"{sample.question} {sample.answer}"))
    pairs = {(c, s) for c in words & set(COLOR_NAMES) for s in words & set(SHAPE_NAMES)}
    return bool(pairs & HELD_OUT_PAIRS) and sample.answer != "no"


def right_answers(vlm: VLM, samples: Sequence[Sample], **options: Any) -> list[bool]:
    """Whether each generated text equals the answer. options: of `RequestOptions`."""
    rights = []
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        answers = vlm.generate_batch([s.messages for s in part], max_new_tokens=4, **options)
        rights += [answer.text.strip() == s.answer for answer, s in zip(answers, part, strict=True)]
    return rights


def differences(samples: Sequence[Sample], rights: Sequence[Sequence[bool]]) -> list[Interval]:
    """Right answers of all but the first of some bundles beside those of the first, as shares of the questions."""
    first, *others = (np.array(each, np.float64) for each in rights)
    bootstrap = Bootstrap([sample.scene for sample in samples], resamples=RESAMPLES, seed=0)
    changes = np.stack([other - first for other in others], axis=1)
    return bootstrap.ratios(changes, np.ones_like(changes))


def beside(names: Sequence[str], samples: Sequence[Sample], retention: float) -> Iterator[tuple[str, ...]]:
    """A row for each bundle: right answers, and points lost or gained beside the first one."""
    rights = [right_answers(VLM(name), samples, retention=retention) for name in names]
    yield names[0], f"{np.mean(rights[0]):.2%}", "", ""
    for name, own, found in zip(names[1:], rights[1:], differences(samples, rights), strict=True):
        changed = sum(a != b for a, b in zip(own, rights[0], strict=True))
        points = f"{100 * found.value:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
        yield name, f"{np.mean(own):.2%}", points, str(changed)


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", metavar="OUT")
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--retention", type=float, default=1.0)
    parser.add_argument("--beside", nargs="+", default=[], metavar="OUT", help="bundles to compare it with")
    arguments = parser.parse_args()
    samples = load_samples("builtin", split="test", count=arguments.questions)
    if arguments.beside:
        rows = beside([arguments.bundle, *arguments.beside], samples, arguments.retention)
        print(f"retention {arguments.retention:g}, {len(samples)} questions\n")
        print(table(("bundle", "right", "points beside the first", "answers that are right in one alone"), rows))
        return 0
    rights = right_answers(VLM(arguments.bundle), samples, retention=arguments.retention)
    groups = {kind: [s.kind == kind for s in samples] for kind in sorted({s.kind for s in samples})}
    groups["all"] = [True] * len(samples)
    groups["about an unseen pair"] = [names_held_out_pair(s) for s in samples]
    print(f"retention {arguments.retention:g}\n\n| questions | number | right |\n| --- | ---: | ---: |")
    for name, chosen in groups.items():
        found = [right for right, is_in in zip(rights, chosen, strict=True) if is_in]
        print(f"| {name} | {len(found)} | {sum(found) / len(found):.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
