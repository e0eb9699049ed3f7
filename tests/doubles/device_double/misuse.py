# SPDX-License-Identifier: Apache-2.0
"""The error of a program that does what a real device would answer with a wrong result, a crash or nothing."""

from __future__ import annotations


class Misuse(Exception):
    """A rule of CUDA or TensorRT was broken.

    Attributes:
        rule: its name, for example "freed-memory"; docs/device-double.md lists them.
    """

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
