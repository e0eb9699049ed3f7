# SPDX-License-Identifier: Apache-2.0
"""The operators that onnx-tensorrt 10.1, JetPack 6.2's parser but for two releases, says it reads, up to opset 20.

Names from docs/operators.md of commit 96e7811 of github.com/onnx/onnx-tensorrt.
"""

from __future__ import annotations

from pathlib import Path

READ_BY_TENSORRT_10_1 = frozenset(Path(__file__).with_name("tensorrt_10_1_operators.txt").read_text().split())
