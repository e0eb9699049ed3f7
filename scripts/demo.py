# SPDX-License-Identifier: Apache-2.0
"""`make demo`: export the built-in checkpoint, then ask about a drawn scene at three retentions.

The scene is number 0 of the split that neither training nor calibration has seen.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from fastmmoe import VLM
from fastmmoe.calibration.data import BUILTIN, QUESTIONS_PER_SCENE, Sample, load_samples
from fastmmoe.calibration.report.stages import StageTracer
from fastmmoe.calibration.report.survivors import draw_survivors
from fastmmoe.exporter.cli import main as export_main
from fastmmoe.runtime.answer import Answer
from fastmmoe.runtime.backends.base import observable
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.request.options import RequestOptions

BUNDLE = Path("demo-cpu")
SCENE = Path(".build/demo-scene.png")
SURVIVORS = Path(".build/demo-survivors.png")
RETENTIONS = (1.0, 0.5, 0.25)
SHOWN_RETENTION = 0.25
RUNS = 3
# Of an answer: the longest right one has two. One more is enough to see that an answer is longer and so wrong.
MAX_TOKENS = 3
WRONG = "✗"

Row = tuple[str, ...]
STATISTICS_HEADER = (
    "retention",
    "visual tokens by stage",
    "prefill GFLOPs",
    "saved",
    "vision ms",
    "prefill ms",
    "decode ms/token",
)


def write_scene(path: Path) -> list[Sample]:
    """Draw the scene into a PNG file, whose folder is made if needed; the questions about it."""
    samples = load_samples(BUILTIN, split="test", count=QUESTIONS_PER_SCENE)
    samples = [sample for sample in samples if sample.scene == samples[0].scene]
    path.parent.mkdir(parents=True, exist_ok=True)
    samples[0].image.save(path)
    return samples


def ask(vlm: VLM, samples: list[Sample], retention: float) -> list[list[Answer]]:
    """Each question several times, after one that warms up."""

    def answer(sample: Sample) -> Answer:
        return vlm.generate(sample.messages, retention=retention, max_new_tokens=MAX_TOKENS)

    answer(samples[0])
    return [[answer(sample) for _ in range(RUNS)] for sample in samples]


def answer_rows(samples: list[Sample], answers: dict[float, list[list[Answer]]]) -> list[Row]:
    """A line for each question: what is right, and what the model says at every retention."""
    rows = [("question", "answer", *(f"at {R:g}" for R in answers))]
    for number, sample in enumerate(samples):
        texts = [runs[number][0].text.strip() for runs in answers.values()]
        marked = [text if text == sample.answer else f"{text} {WRONG}" for text in texts]
        rows.append((sample.question, sample.answer or "", *marked))
    return rows


def statistics_row(answers: list[list[Answer]]) -> Row:
    """A line for one retention: FLOPs are those of all questions, times are medians."""
    stats = [answer.stats for runs in answers for answer in runs]
    flops, unmodified = sum(s.prefill_flops for s in stats), sum(s.prefill_flops_unmodified for s in stats)
    return (
        f"{stats[0].retention:g}",
        " > ".join(str(n) for n in (stats[0].visual_tokens, *stats[0].kept_visual_tokens)),
        f"{flops / len(stats) / 1e9:.3f}",
        f"{1 - flops / unmodified:.1%}",
        f"{statistics.median(s.vision_ms for s in stats):.1f}",
        f"{statistics.median(s.prefill_ms for s in stats):.1f}",
        f"{statistics.median(ms for s in stats for ms in s.decode_ms):.1f}",
    )


def print_table(rows: list[Row], align: Callable[[str, int], str]) -> None:
    """Columns of one width each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())


def draw_fates(vlm: VLM, sample: Sample, path: Path) -> None:
    """Which patches each stage kept, merged and dropped while it was asked one question, as a PNG file."""
    inputs = vlm.processor(sample.messages)
    features = vlm.backend.image_features(inputs.vision_inputs)
    embeds = vlm.backend.embed(inputs.input_ids, inputs.visual_index, features)
    (schedule,) = Run(vlm.manifest, vlm.backend, [inputs], RequestOptions(retention=SHOWN_RETENTION)).schedules
    stages = StageTracer(observable(vlm.backend)).trace(Chunk(0, embeds, inputs.visual_index, schedule))
    draw_survivors(inputs, vlm.manifest.processor, stages).save(path)


def main() -> int:
    """Exit code of the first step that fails, else 0."""
    code = export_main(["demo", str(BUNDLE), "--overwrite"])
    if code:
        return code
    samples, vlm = write_scene(SCENE), VLM(BUNDLE)
    answers = {retention: ask(vlm, samples, retention) for retention in RETENTIONS}
    print(f"\n{SCENE}: a scene the model has not seen; {WRONG} = a wrong answer at this retention\n")
    print_table(answer_rows(samples, answers), str.ljust)
    print(f"\nmedians of {len(samples)} questions, {RUNS} times each\n")
    print_table([STATISTICS_HEADER, *(statistics_row(of_one) for of_one in answers.values())], str.rjust)
    draw_fates(vlm, samples[0], SURVIVORS)
    print(f"\n{SURVIVORS}: what each stage did at retention {SHOWN_RETENTION:g} for {samples[0].question!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
