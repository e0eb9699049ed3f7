# SPDX-License-Identifier: Apache-2.0
"""The engine file of the double: a line of JSON that describes it, then the graph with its weights."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import onnx

MAGIC = "fastmmoe-device-double"
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class DamagedEngine(Exception):
    """The bytes are no engine of the double."""


@dataclass(frozen=True)
class EngineFile:
    """What a builder writes and a runtime reads.

    Attributes:
        module: "tensorrt" or "tensorrt_rtx".
        version: of the builder.
        compute_capabilities: the GPUs it is for.
        profiles: input -> smallest, typical and greatest shape.
        aliases: output -> input of the same address.
        operators: those of the plugin.
        model: the graph as it was parsed, weights within.
    """

    module: str
    version: str
    compute_capabilities: tuple[int, ...]
    profiles: tuple[dict[str, Shapes], ...]
    aliases: dict[str, str]
    operators: tuple[str, ...]
    model: bytes

    def encode(self) -> bytes:
        """The file."""
        document: dict[str, Any] = asdict(self)
        document["model"] = base64.b64encode(zlib.compress(self.model, 1)).decode()
        body = json.dumps(document).encode()
        head = {"magic": MAGIC, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
        return json.dumps(head).encode() + b"\n" + body

    @classmethod
    def decode(cls, data: bytes) -> EngineFile:
        """Read a file.

        Raises:
            DamagedEngine: it is not what `encode` gave.
        """
        head, _, body = data.partition(b"\n")
        try:
            said = json.loads(head)
            if said["magic"] != MAGIC or said["sha256"] != hashlib.sha256(body[: said["bytes"]]).hexdigest():
                raise DamagedEngine("checksum")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedEngine("magic tag") from error
        document = json.loads(body[: said["bytes"]])
        profiles = tuple(
            {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()} for profile in document["profiles"]
        )
        return cls(
            module=document["module"],
            version=document["version"],
            compute_capabilities=tuple(document["compute_capabilities"]),
            profiles=profiles,  # type: ignore[arg-type]
            aliases=document["aliases"],
            operators=tuple(document["operators"]),
            model=zlib.decompress(base64.b64decode(document["model"])),
        )

    def graph(self) -> onnx.ModelProto:
        """The graph."""
        return onnx.load_model_from_string(self.model)
