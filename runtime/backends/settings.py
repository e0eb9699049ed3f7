# SPDX-License-Identifier: Apache-2.0
"""Settings of a backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings that sessions are made with.

    Attributes:
        portable: run the variant whose operators have function bodies, without the native library.
        threads: size of ONNX Runtime's pool; 0 = one for each core that this process may use.
        spinning: idle threads ask for work without a pause. They find it sooner, and take the cores from whatever
            else runs: on a busy machine requests take several times as long (docs/benchmark.md).
        profile: start of the name of a file that the language model's node times are written to; None = no such file.
    """

    portable: bool = False
    threads: int = 0
    spinning: bool = False
    profile: str | None = None


DEFAULTS = Settings()
