# SPDX-License-Identifier: Apache-2.0
"""The scripts, which import each other from their own folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> Any:
    """The module scripts/NAME.py, or one of a folder there, such as "sass_tools.banks"."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module(name)
