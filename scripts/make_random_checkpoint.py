# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint of a published model with random weights: its true names, shapes, dtypes, layout and shards.

    python scripts/make_random_checkpoint.py InternVL3_5-30B-A3B-HF DIR --layers 2
    python scripts/make_random_checkpoint.py deepseek-vl2-tiny DIR
    fastmmoe-export DIR OUT

Routing is as decisive as a trained model's, and activations stay in range whatever the depth. The tokenizer is a
stand-in that knows bytes and the model's special tokens.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from checkpoint_tools.published import PUBLISHED, Cut
from checkpoint_tools.writer import SEED, every, none, write_checkpoint

from fastmmoe.runtime.cli.command import run_command

_UNITS = {"MB": 10**6, "GB": 10**9}


def _shard_size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(MB|GB)", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0")
    return int(text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a checkpoint of a published model with random weights.")
    parser.add_argument("model", choices=PUBLISHED, metavar="MODEL", help=", ".join(PUBLISHED))
    parser.add_argument("directory", type=Path, metavar="OUT", help="new or empty")
    parser.add_argument("--layers", type=int, help="the first N decoder layers (default: all)", metavar="N")
    parser.add_argument("--vision-layers", type=int, help="the same of the vision tower", metavar="N")
    parser.add_argument("--vocab-size", type=int, help="rows of embedding and head (default: all)", metavar="N")
    parser.add_argument("--seed", type=_seed, default=SEED, help="default %(default)s")
    parser.add_argument("--shard-size", type=_shard_size, default="5GB", help="default %(default)s", metavar="SIZE")
    parser.add_argument(
        "--holes", action="store_true", help="files of full length without values, for what needs the headers alone"
    )
    return parser.parse_args()


def _main() -> int:
    a = _parse()
    start = time.perf_counter()
    sizes = write_checkpoint(
        a.directory,
        PUBLISHED[a.model],
        Cut(a.layers, a.vision_layers, a.vocab_size),
        seed=a.seed,
        shard_bytes=a.shard_size,
        wanted=none if a.holes else every,
    )
    size, seconds = sum(sizes.values()), time.perf_counter() - start
    files = "1 weight file" if len(sizes) == 1 else f"{len(sizes)} weight files"
    speed = "holes" if a.holes else f"{size / 1e9 / seconds:.2f} GB/s"
    print(f"wrote {a.directory}: {size / 1e9:.2f} GB in {files} ({seconds:.1f} s, {speed})")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("make_random_checkpoint", _main))
