# SPDX-License-Identifier: Apache-2.0
"""The options of one request, and the words about options that there are not; NumPy is imported where it is needed."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.ranges import Experts, Tiles

Count: TypeAlias = Annotated[int, Meta(ge=1)]


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of one request; None = the bundle's default.

    NumPy's numbers and arrays count as Python's; truth values are no numbers.

    Attributes:
        method: one of those in the bundle; "none" always is.
        retention: share of visual tokens left after the last stage, (0, 1].
        pruning_rate: 1 - retention; give one.
        visual_top_k: experts per visual token from layer 2 on, or one number for every MoE layer.
        alpha: weight of redundancy against importance, [0, 1].
        seed: random numbers of method random follow from it; 0 or more.
        max_new_tokens: the most tokens of the answer, at least 1.
        max_tiles: the most local tiles of a picture.
    Raises:
        InvalidRequest: a value of another type or outside its range.
    """

    method: str | None = None
    retention: Annotated[float, Meta(gt=0, le=1)] | None = None
    pruning_rate: Annotated[float, Meta(ge=0, lt=1)] | None = None
    visual_top_k: Experts | tuple[Experts, ...] | None = None
    alpha: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    max_new_tokens: Count = 64
    max_tiles: Tiles | None = None

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            msgspec.structs.force_setattr(self, name, _convert(name, getattr(self, name), kind))
        if self.pruning_rate is not None and self.retention is not None:
            raise InvalidRequest("give retention or pruning_rate, not both")

    @staticmethod
    def of(options: Mapping[str, Any]) -> RequestOptions:
        """The options of these names.

        Raises:
            InvalidRequest: an unknown name, a value of another type or outside its range.
        """
        for name in options:
            if name not in _kinds():
                raise InvalidRequest(f"option {name} {_advice(name)}")
        return RequestOptions(**options)

    @property
    def resolved_retention(self) -> float | None:
        """Retention from either of the two."""
        return self.retention if self.pruning_rate is None else 1 - self.pruning_rate


_EXPECTED = {
    "method": "the name of a method in the bundle",
    "retention": "a number in (0, 1], the share of visual tokens to keep",
    "pruning_rate": "a number in [0, 1), the share to remove",
    "visual_top_k": "1 to the model's experts per token, a whole number, or a list of them, one for each MoE layer",
    "alpha": "a number in [0, 1]",
    "seed": "a whole number, 0 or more",
    "max_new_tokens": "at least 1, a whole number",
    "max_tiles": "at least 1 local tile per picture and at most 4096, a whole number",
}

_GREEDY = "is unknown: answers are greedy, each token is the most probable one; leave it out"
_LIMIT = "is called max_new_tokens here"
_STOP = "is unknown: answers end at the model's own stop tokens; to end one earlier leave its generate_stream"
_OF_VLM = "is not of a request: VLM(bundle, ...) takes it"
_OF_MESSAGES = "is not an option: it belongs into the messages"
_ADVICE = {
    **dict.fromkeys(("max_tokens", "max_length", "max_completion_tokens", "max_output_tokens", "n_predict"), _LIMIT),
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "typical_p", "do_sample", "sampling"), _GREEDY),
    **dict.fromkeys(("num_beams", "num_return_sequences", "n", "best_of", "logits_processor"), _GREEDY),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"), _GREEDY),
    **dict.fromkeys(("stop", "stop_strings", "stopping_criteria", "eos_token_id", "min_new_tokens"), _STOP),
    **dict.fromkeys(("streamer", "stream"), "is unknown: generate_stream gives the answer token by token"),
    **dict.fromkeys(("threads", "portable"), _OF_VLM),
    **dict.fromkeys(("image", "images", "prompt", "system", "tools", "chat_template"), _OF_MESSAGES),
}


def default_of(name: str) -> Any:
    """What a request has that does not name the option."""
    return next(field.default for field in msgspec.structs.fields(RequestOptions) if field.name == name)


@functools.cache
def _kinds() -> dict[str, Any]:
    """Names of the options and their types."""
    return {field.name: field.type for field in msgspec.structs.fields(RequestOptions)}


def _advice(name: str) -> str:
    """What to do instead of giving an option that there is not."""
    close = difflib.get_close_matches(name, [*_ADVICE, *_kinds()], n=1)
    if not close:
        return f"is unknown; there are {', '.join(_kinds())}"
    return _ADVICE.get(close[0], f"is unknown; did you mean {close[0]}?")


def _convert(name: str, value: Any, kind: Any) -> Any:
    try:
        plain = _plain(value)
        if isinstance(plain, float) and not math.isfinite(plain):
            raise msgspec.ValidationError
        return msgspec.convert(plain, kind)
    # The last three: half of a surrogate pair, a list that holds itself, whole numbers beyond every float.
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError, OverflowError):
        raise InvalidRequest(f"{name} {_shown(value)}: expected {_EXPECTED[name]}") from None


def _shown(value: Any) -> str:
    """The value, shortened; its type where Python does not show it, as whole numbers of thousands of digits."""
    try:
        shown = repr(_plain(value))
    except (ValueError, RecursionError):
        return f"of type {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, lists and tuples as lists; what is ordered otherwise, or not at all, is refused."""
    import numpy as np

    if isinstance(value, (np.number, np.bool_, np.ndarray)) and not isinstance(value, np.timedelta64):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return [_plain(one) for one in value]
    if isinstance(value, (bytes, bytearray, memoryview, Set, np.timedelta64)):
        raise msgspec.ValidationError
    return value
