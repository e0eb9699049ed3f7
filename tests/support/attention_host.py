# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's CPU kernels in a program of their own (plugins/testing/attention_host)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from fastmmoe.runtime.types import Array
from tests.support.attention_cases import Case
from tests.support.attention_params import INPUTS, OUTPUTS, make_params, output_types
from tests.support.host_program import build_program


class AttentionHost:
    """A build of the program, and how it is run."""

    def __init__(self, build: Path, settings: list[str], emulator: tuple[str, ...] = ()) -> None:
        """settings: of CMake. emulator: the words before the program's path."""
        self.command = [*emulator, str(build_program("attention_host", build, settings))]

    def __call__(self, case: Case, inputs: dict[str, Array]) -> list[Array]:
        """The outputs in the contract's order, with caches that are not in place."""
        types = output_types(case, inputs)
        sizes = {name: array.nbytes for name, array in inputs.items()}
        sizes |= {name: int(np.prod(shape)) * dtype.itemsize for name, (shape, dtype) in types.items()}
        parts = [bytes(make_params(case, inputs, sizes))]
        parts += [inputs[name].tobytes() for name in INPUTS if name in inputs]
        done = subprocess.run(self.command, input=b"".join(parts), capture_output=True, check=False)
        assert done.returncode == 0, f"{done.returncode}: {done.stderr.decode()[-4000:]}"
        outputs, start = {}, 0
        for name in OUTPUTS:
            if name not in types:
                continue
            shape, dtype = types[name]
            bits = done.stdout[start : start + sizes[name]]
            outputs[name] = np.frombuffer(bits, np.uint8).view(dtype).reshape(shape)
            start += sizes[name]
        assert start == len(done.stdout)
        return [outputs[name] for name in types]
