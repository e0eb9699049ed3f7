# SPDX-License-Identifier: Apache-2.0
"""What a package of Python bindings offers: parameters of methods, properties, members of enumerations.

    python signatures.py MODULE < [["ICudaEngine", "get_tensor_name"], ...] > JSON

so that bindings can be asked in a process of their own, over libraries that hold nothing.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

PROPERTY = "property"


def of_binding(module: Any, cls: str, member: str) -> list[list[str]] | str | int | None:
    """What a class of pybind11 says of a member.

    Returns:
        The parameters of each overload, PROPERTY, the number of a member of an enumeration, or None: it has none.
    """
    found = getattr(getattr(module, cls, None), member, None)
    if found is None:
        return None
    if isinstance(found, property):
        return PROPERTY
    if not callable(found):
        return int(found)
    lines = re.findall(rf"^\s*(?:\d+\. )?{member}\((.*?)\) ->", found.__doc__ or "", re.M)
    return [[_name(part) for part in re.split(r",\s*(?![^\[]*\])", line) if part] for line in lines]


def _name(parameter: str) -> str:
    return parameter.split(":")[0].split("=")[0].strip()


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    bindings = importlib.import_module(sys.argv[1])
    json.dump([of_binding(bindings, cls, member) for cls, member in asked], sys.stdout)
