# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the demo model by kind of question, and on pairs of colour and shape that it was not trained on.

`fastmmoe-export demo demo-cpu && python scripts/evaluate_demo.py demo-cpu`
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from fastmmoe import VLM
from fastmmoe.calibration.data import Sample, load_samples
from fastmmoe.calibration.scenes import COLOR_NAMES, HELD_OUT_PAIRS, SHAPE_NAMES

BATCH = 8


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


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", metavar="OUT")
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--retention", type=float, default=1.0)
    arguments = parser.parse_args()
    samples = load_samples("builtin", split="test", count=arguments.questions)
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
