# SPDX-License-Identifier: Apache-2.0
"""What Triton's Python backend runs (model.py of `fastmmoe triton`): requests to packed runs, pieces to responses.

Triton's module exists in its own processes alone, so it comes in as an argument.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastmmoe.runtime.answer import Answer, Piece
from fastmmoe.runtime.ending import Ending
from fastmmoe.runtime.errors import FastmmoeError, InvalidRequest
from fastmmoe.runtime.generation import RequestStats
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM

PROMPT, IMAGE, OPTIONS, STREAM = "prompt", "image", "options", "stream"
TEXT, TOKEN_ID, FINISH_REASON, STATS = "text", "token_id", "finish_reason", "stats"
BUNDLE, PROVIDER, THREADS = "bundle", "provider", "threads"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class Asked:
    """A request and where its responses go.

    Attributes:
        options: as they were given, JSON; what shares them may share calls.
        pieces: of the answer so far, where it is to come whole.
    """

    sender: Any
    inputs: ModelInputs
    options: str
    is_streamed: bool
    has_ended: bool = False
    pieces: list[Piece] = field(default_factory=list)


class _AllCancelled:
    """See `Flag`: nobody waits for any of these answers."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = asked

    def is_set(self) -> bool:
        return all(one.has_ended or one.sender.is_cancelled() for one in self._asked)


class Server:
    """A model instance.

    Args:
        pb_utils: the module triton_python_backend_utils.
    """

    def __init__(self, pb_utils: Any, vlm: VLM) -> None:
        self._pb, self._vlm = pb_utils, vlm

    @staticmethod
    def load(pb_utils: Any, args: Mapping[str, str]) -> Server:
        """The instance that Triton's `initialize` arguments ask for; it has answered once for nothing.

        Raises:
            BackendMissing, BundleMismatch, InvalidRequest: see `VLM`, or the bundle has no tokenizer.
        """
        given = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in given.items()}
        if args["model_instance_kind"] == "GPU":
            _show_only(int(args["model_instance_device_id"]))
        threads = int(parameters[THREADS])
        vlm = VLM(parameters[BUNDLE], provider=parameters[PROVIDER], threads=threads)
        vlm.warm_up()
        return Server(pb_utils, vlm)

    def close(self) -> None:
        """Give back what the model holds of a device."""
        self._vlm.close()

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer the requests that Triton batched; those with the same options in shared calls."""
        by_options: dict[str, list[Asked]] = {}
        for request in requests:
            asked = self._read(request)
            if asked is not None:
                by_options.setdefault(asked.options, []).append(asked)
        for together in by_options.values():
            try:
                self._answer(together)
            except FastmmoeError as error:
                for one in together:
                    if not one.has_ended:
                        self._refuse(one.sender, error)

    def _answer(self, together: list[Asked]) -> None:
        options = _options(together[0].options)
        places = {id(one.inputs): one for one in together}
        for group in self._vlm.groups([one.inputs for one in together], options):
            asked = [places[id(inputs)] for inputs in group]
            run = self._vlm.start(group, options, Ending.of(options, _AllCancelled(asked)))
            for sequence, piece in self._vlm.pieces(run, options):
                one = asked[sequence]
                if one.sender.is_cancelled() and piece.finish_reason is None:
                    run.finish(sequence)
                if not one.has_ended:
                    self._give(one, piece)
            for one in asked:
                # What was cancelled ends without a last piece.
                if not one.has_ended:
                    self._end(one)

    def _give(self, one: Asked, piece: Piece) -> None:
        is_last = piece.finish_reason is not None
        if one.is_streamed:
            one.sender.send(self._response(piece.text, piece.token_id, piece.finish_reason, piece.stats))
        else:
            one.pieces.append(piece)
            if is_last:
                answer = Answer.of(one.pieces)
                last = answer.token_ids[-1] if answer.token_ids else None
                one.sender.send(self._response(answer.text, last, answer.finish_reason, answer.stats))
        if is_last:
            self._end(one)

    def _end(self, one: Asked) -> None:
        one.has_ended = True
        one.sender.send(flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _refuse(self, sender: Any, error: FastmmoeError) -> None:
        response = self._pb.InferenceResponse(output_tensors=[], error=self._pb.TritonError(str(error)))
        sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, text: str, token_id: int | None, reason: str | None, stats: RequestStats) -> Any:
        told = "" if reason is None else json.dumps(stats.plain())
        texts = {TEXT: text, FINISH_REASON: reason or "", STATS: told}
        tensors = [self._pb.Tensor(name, np.array([[value.encode()]], np.object_)) for name, value in texts.items()]
        # No token came with the last piece of an answer that was ended early.
        tensors.append(self._pb.Tensor(TOKEN_ID, np.array([[-1 if token_id is None else token_id]], np.int32)))
        return self._pb.InferenceResponse(output_tensors=tensors)

    def _read(self, request: Any) -> Asked | None:
        """The request, or None where it has been refused."""
        sender = request.get_response_sender()
        try:
            tensors = {name: self._values(request, name) for name in (PROMPT, IMAGE, OPTIONS, STREAM)}
            options = tensors[OPTIONS][0].decode() if tensors[OPTIONS] else "{}"
            content: list[dict[str, Any]] = [{"type": "image", "image": picture_of(one)} for one in tensors[IMAGE]]
            content.append({"type": "text", "text": tensors[PROMPT][0].decode()})
            max_tiles = _options(options).max_tiles
            inputs = self._vlm.processor([{"role": "user", "content": content}], max_tiles=max_tiles)
        except UnicodeDecodeError as error:
            self._refuse(sender, InvalidRequest(f"{PROMPT} or {OPTIONS}: is no UTF-8: {error}"))
        except FastmmoeError as error:
            self._refuse(sender, error)
        else:
            is_streamed = bool(tensors[STREAM][0]) if tensors[STREAM] else True
            return Asked(sender, inputs, options, is_streamed)
        return None

    def _values(self, request: Any, name: str) -> list[Any]:
        """The one row of an input; [] where it is left out."""
        tensor = self._pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            return []
        values: Array = tensor.as_numpy()
        if len(values) != 1:
            raise InvalidRequest(f"{name} has {len(values)} rows: expected 1, one question a request")
        row: list[Any] = values[0].ravel().tolist()
        return row


def picture_of(data: bytes) -> Any:
    """The picture in a file's bytes, or in their base64 with or without `data:...,` before it.

    Raises:
        InvalidRequest: it is none.
    """
    from PIL import Image

    try:
        # Files of pictures hold bytes that are no ASCII, text holds none.
        plain = base64.b64decode(data.rpartition(b",")[2], validate=True) if data.isascii() else data
        return Image.open(io.BytesIO(plain))
    except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        reason = f"{len(data)} bytes that no picture begins with"
        raise InvalidRequest(f"{IMAGE}: {reason}: expected a PNG or JPEG file, or its base64") from error


def _options(text: str) -> RequestOptions:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{OPTIONS}: no JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRequest(f'{OPTIONS}: expected a JSON object of request options, such as {{"retention": 0.25}}')
    if "deadline" in given:
        raise InvalidRequest(f"{OPTIONS}: deadline is of the server's own clock: give deadline_ms")
    return RequestOptions.of(given)


def _show_only(device: int) -> None:
    """Have CUDA, which is not loaded yet, see the instance's device alone."""
    visible = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = str(device) if not visible else visible.split(",")[device]
