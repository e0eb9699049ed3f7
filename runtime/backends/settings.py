# SPDX-License-Identifier: Apache-2.0
"""Settings of a backend."""

from __future__ import annotations

from dataclasses import dataclass

AUTO, CPU, CUDA, TENSORRT = "auto", "cpu", "cuda", "tensorrt"
PROVIDERS = (AUTO, CPU, CUDA, TENSORRT)
"""What may run a bundle: auto is the best that the bundle and this machine have (provider.py)."""


@dataclass(frozen=True)
class Settings:
    """Settings that sessions are made with.

    Attributes:
        provider: one of PROVIDERS.
        portable: run the variant whose operators have function bodies, without the native library.
        threads: size of ONNX Runtime's pool; 0 = one for each core that this process may use.
        spinning: idle threads ask for work without a pause. They find it sooner, and take the cores from whatever
            else runs: on a busy machine requests take several times as long (docs/benchmark.md).
        profile: take the time of every node (`Profilable`), which takes time itself.
    """

    provider: str = AUTO
    portable: bool = False
    threads: int = 0
    spinning: bool = False
    profile: bool = False


DEFAULTS = Settings()
