# SPDX-License-Identifier: Apache-2.0
"""A stand-in for triton_python_backend_utils, the module that Triton's Python backend gives its models.

Names and behaviour are those of its documentation; what models send is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastmmoe.runtime.types import Array

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


@dataclass
class Tensor:
    """A named array; strings are objects of type bytes."""

    tensor_name: str
    array: Array

    def name(self) -> str:
        """Its name."""
        return self.tensor_name

    def as_numpy(self) -> Array:
        """Its values."""
        return self.array


@dataclass
class TritonError:
    """What went wrong."""

    text: str

    def message(self) -> str:
        """In words."""
        return self.text


@dataclass
class InferenceResponse:
    """Outputs, or an error."""

    output_tensors: list[Tensor]
    error: TritonError | None = None

    def plain(self) -> dict[str, Any]:
        """The outputs by name, each of which has one value in a batch of one."""
        found = {}
        for tensor in self.output_tensors:
            assert tensor.array.shape == (1, 1)
            (value,) = tensor.array[0].tolist()
            found[tensor.name()] = value.decode() if isinstance(value, bytes) else value
        return found


@dataclass
class Sender:
    """Takes a request's responses; nothing may come after the last.

    Attributes: cancels_after: responses after which the client goes away; None = it stays.
    """

    responses: list[InferenceResponse] = field(default_factory=list)
    is_closed: bool = False
    cancels_after: int | None = None

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """A response, or the word that there are no more, or both."""
        assert not self.is_closed, "a response after the last"
        assert response is not None or flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is not None:
            self.responses.append(response)
        self.is_closed = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL

    def is_cancelled(self) -> bool:
        """Whether the client has gone away."""
        return self.cancels_after is not None and len(self.responses) >= self.cancels_after


@dataclass
class Request:
    """Tensors, each with the batch of one in front, and where responses go."""

    tensors: dict[str, Array]
    sender: Sender = field(default_factory=Sender)

    def get_response_sender(self) -> Sender:
        """Where they go."""
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    """An input, None where it is left out."""
    return Tensor(name, request.tensors[name]) if name in request.tensors else None


def request(prompt: str, *pictures: bytes, cancels_after: int | None = None, **others: Any) -> Request:
    """A request of this question; others: options (JSON), stream."""
    tensors: dict[str, Array] = {"prompt": np.array([[prompt.encode()]], np.object_)}
    if pictures:
        tensors["image"] = np.array([pictures], np.object_)
    if "options" in others:
        tensors["options"] = np.array([[others["options"].encode()]], np.object_)
    if "stream" in others:
        tensors["stream"] = np.array([[others["stream"]]], np.bool_)
    return Request(tensors, Sender(cancels_after=cancels_after))


def module() -> Any:
    """The names that a model finds in the module."""
    return SimpleNamespace(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        get_input_tensor_by_name=get_input_tensor_by_name,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )
