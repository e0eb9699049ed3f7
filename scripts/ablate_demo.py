# SPDX-License-Identifier: Apache-2.0
"""What the parts of the method add on the demo model: the same questions, answered with and without them.

    fastmmoe-export demo demo-cpu && fastmmoe-export demo demo-unmerged --merge-ratio 0
    python scripts/ablate_demo.py demo-cpu demo-unmerged --retention 0.25

OUT is the method as exported; with alpha 0 in the request, redundancy of routing counts for nothing in it; UNMERGED is
a bundle that merges nothing, so attention alone decides. Differences are OUT's accuracy minus the other's, with the
middle 95 % of resamples of the scenes.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from evaluate_demo import right_answers

from fastmmoe import VLM
from fastmmoe.calibration.data import load_samples
from fastmmoe.calibration.measure.bootstrap import Bootstrap

RESAMPLES = 10_000


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", metavar="OUT")
    parser.add_argument("unmerged", metavar="UNMERGED")
    parser.add_argument("--questions", type=int, default=2100)
    parser.add_argument("--retention", type=float, default=0.25)
    arguments = parser.parse_args()
    samples = load_samples("builtin", split="test", count=arguments.questions)
    bootstrap = Bootstrap([sample.scene for sample in samples], resamples=RESAMPLES, seed=0)
    whole = VLM(arguments.bundle)
    runs = {
        "the full method": (whole, {}),
        "alpha 0": (whole, {"alpha": 0.0}),
        "no merging": (VLM(arguments.unmerged), {}),
    }
    right = {
        name: np.array(right_answers(vlm, samples, retention=arguments.retention, **options), np.float64)
        for name, (vlm, options) in runs.items()
    }
    print(f"retention {arguments.retention:g}, {len(samples):,} questions\n")
    print("| | right | the full method is better by |\n| --- | --- | --- |")
    for name, found in right.items():
        difference = (right["the full method"] - found)[:, None]
        (interval,) = bootstrap.ratios(difference, np.ones_like(difference))
        points = f"{100 * interval.value:+.2f} points ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
        print(f"| {name} | {found.mean():.2%} | {points if name in list(right)[1:] else ''} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
