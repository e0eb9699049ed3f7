# SPDX-License-Identifier: Apache-2.0
"""Load a plugin library into TensorRT's lean runtime and make plugins: lean_host.py LIBRARY OP=FIELDS...

FIELDS is JSON: an object of attributes. Prints a JSON line for each OP: what the plugin says of itself, or null where
the creator refused. Runs in a process of its own, with the lean runtime's packages on the path.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean_bindings as trt


def field(name: str, value: Any) -> tuple[trt.PluginField, np.ndarray]:
    """An attribute as TensorRT's ONNX parser passes it, and what must outlive the field, which only points to it."""
    if isinstance(value, str):
        data, kind = np.frombuffer(value.encode() + b"\0", np.int8), trt.PluginFieldType.CHAR
    elif isinstance(value, int):
        data, kind = np.array([value], np.int32), trt.PluginFieldType.INT32
    else:
        data, kind = np.array([value], np.float32), trt.PluginFieldType.FLOAT32
    return trt.PluginField(name, data, kind), data


def describe(op: str, attributes: dict[str, Any]) -> dict[str, Any] | None:
    """Create one plugin; attributes with contract_version are those of an engine."""
    creator = trt.get_plugin_registry().get_creator(op, "1", "fastmmoe")
    fields, _data = zip(*(field(name, value) for name, value in attributes.items()), strict=True)
    phase = trt.TensorRTPhase.RUNTIME if "contract_version" in attributes else trt.TensorRTPhase.BUILD
    plugin = creator.create_plugin("node", trt.PluginFieldCollection(list(fields)), phase)
    if plugin is None:
        return None
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    return {
        "name": [core.plugin_namespace, core.plugin_name, core.plugin_version],
        "outputs": build.num_outputs,
        "fields": [f.name for f in creator.field_names],
    }


def main() -> None:
    library, *requests = sys.argv[1:]
    if trt.get_plugin_registry().load_library(library) is None:
        sys.exit(f"TensorRT {trt.__version__} does not load {library}")
    print(json.dumps(trt.__version__))
    for request in requests:
        op, _, attributes = request.partition("=")
        print(json.dumps(describe(op, json.loads(attributes))), flush=True)


if __name__ == "__main__":
    main()
