# SPDX-License-Identifier: Apache-2.0
"""The options that say how weights are stored, of exports and of plans."""

from __future__ import annotations

import argparse
from typing import get_args

from fastmmoe.exporter.config import GROUP_SIZE, DenseFormat, ExpertFormat, ExportConfig, VisionFormat, Weights
from fastmmoe.exporter.targets import INT8_GROUP, MIXES


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Add the options of weights' formats, of exports and of plans."""
    config = ExportConfig()
    parser.add_argument("--weights", choices=get_args(Weights), default=config.weights, help=_weights_help())
    parser.add_argument(
        "--experts",
        choices=get_args(ExpertFormat),
        default=config.experts,
        help="weights of the routed experts: float as --dtype says (default), or rounded to 8 or 4 bits",
    )
    parser.add_argument(
        "--dense",
        choices=get_args(DenseFormat),
        default=config.dense,
        help="weights of the language model's other linear layers: attention's projections, shared experts, dense "
        "MLPs, head (of 8 bits with int4); bf16 on cpu alone; default float",
    )
    parser.add_argument(
        "--vision",
        choices=get_args(VisionFormat),
        default=config.vision,
        help="weights of the vision tower's linear layers; bf16 and int8 on cpu alone (default float)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=config.group_size,
        help="columns of packed experts and of linear layers of 4 bits that share a scale "
        f"(default {GROUP_SIZE}, 32 with --weights int4; linear layers of 8 bits {INT8_GROUP})",
    )
    parser.add_argument(
        "--zero-points",
        action="store_true",
        help="give each group of integer experts, and of linear layers of 4 bits, a zero of its own, too",
    )
    parser.add_argument(
        "--layout",
        choices=("logical", "tiles"),
        default=config.layout,
        help="order of the experts' weights (default: on cpu tiles, which its kernels read as they lie, "
        "with bf16, int8 and int4; else logical)",
    )


def _weights_help() -> str:
    mixes = (
        f"{word} = {', '.join(f'{field} {value}' for field, value in mix.items() if field != 'group_size')}"
        for word, mix in MIXES.items()
    )
    return (
        f"all formats in a word: {'; '.join(mixes)}, groups of 32 with zeros; linear layers that the target does "
        "not take so, as the vision tower's on engine targets, stay floats; single ones may be given beside it"
    )
