# SPDX-License-Identifier: Apache-2.0
"""Train the demo model from scratch: `python scripts/train_demo.py OUT`. Hours on two cores; goes on where it stopped.

OUT/scenes holds the drawn scenes, OUT/STAGE.pt and OUT/STAGE.jsonl the newest state and the log of each stage,
OUT/checkpoint the model that comes out, in the layout of the published DeepSeek-VL2 checkpoints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from demo_training.checkpoint import write_checkpoint
from demo_training.config import write_config
from demo_training.data import make_scenes
from demo_training.stages import (
    CONFIGS,
    Data,
    VisionLanguageModel,
    joint_stage,
    shortened,
    symbols_stage,
    vision_stage,
)

SCENES, VALIDATION = 40_000, 1_000
# Scenes and steps of a trial.
SMOKE = {
    "short": (4, {"symbols": 35, "vision": 40, "joint": 12, "experts": 2}),
    "long": (16, {"symbols": 70, "vision": 80, "joint": 25, "experts": 5}),
}


def main() -> int:
    """Train every stage that is not done, then write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="directory for scenes, states, logs and the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--smoke", nargs="?", const="long", choices=SMOKE, help="on few scenes, to see that it learns them"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.out, smoke=arguments.smoke)
    return 0


def train(out: Path, *, smoke: str | None = None) -> None:
    """Train into `out`; with `smoke` (key of SMOKE) on few scenes, which also stand for those it is looked at with."""
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_config(checkpoint)
    tokenizer = checkpoint / "tokenizer.json"
    count, steps = SMOKE[smoke] if smoke else (SCENES, {})
    scenes = make_scenes(out / "scenes", "train", 0, count, tokenizer)
    validation = scenes if smoke else make_scenes(out / "scenes", "validation", 0, VALIDATION, tokenizer)
    data, configs = Data(scenes, validation, tokenizer), CONFIGS
    if smoke:
        configs = {name: shortened(config, steps[name], count) for name, config in CONFIGS.items()}
    on_symbols = symbols_stage(out, data, configs["symbols"])
    vision = vision_stage(out, data, configs["vision"], on_symbols.symbols)
    model = VisionLanguageModel(vision, on_symbols.decoder)
    for name in ("joint", "experts"):
        joint_stage(out, name, data, configs[name], model, on_symbols.symbols)
    write_checkpoint(checkpoint, model.vision, model.decoder)
    print(f"wrote {checkpoint}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
