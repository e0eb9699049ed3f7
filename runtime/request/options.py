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
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
MOST_LOGPROBS = 20


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of one request; None = the bundle's default.

    NumPy's numbers and arrays count as Python's; truth values are no numbers.

    Attributes:
        method: one of those in the bundle; "none" always is.
        retention: share of visual tokens left after the last stage, (0, 1].
        pruning_rate: 1 - retention; give one.
        visual_top_k: experts per visual token from layer 2 on, or one number for every MoE layer.
        alpha: weight of redundancy against importance, [0, 1].
        seed: what is drawn follows from it, and what method random drops; 0 or more.
        max_new_tokens: the most tokens of the answer, at least 1.
        max_tiles: the most local tiles of a picture.
        temperature: 0 = each token is the most probable one; above it tokens are drawn, by logits divided by it.
        top_p: tokens are drawn from the fewest most probable ones that have this share together, (0, 1].
        top_k: tokens are drawn from so many of the most probable ones; 0 and -1 = from all.
        stop: a text or several; the answer ends in front of the first that it would hold. Kept as a tuple.
        logprobs: log-probabilities of each token of the answer and of so many of the most probable ones, 0 to 20.
        choices: the texts that may be the answer; the most likely is, which one prefill and a few steps find.
        deadline_ms: milliseconds from the start of the request at which it ends, with what there is.
        deadline: the same as a time of time.monotonic, in seconds; give one.
    Raises:
        InvalidRequest: a value of another type or outside its range, or options that exclude each other.
    """

    method: str | None = None
    retention: Annotated[float, Meta(gt=0, le=1)] | None = None
    pruning_rate: Annotated[float, Meta(ge=0, lt=1)] | None = None
    visual_top_k: Experts | tuple[Experts, ...] | None = None
    alpha: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    max_new_tokens: Count = 64
    max_tiles: Tiles | None = None
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    stop: Text | tuple[Text, ...] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    choices: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            msgspec.structs.force_setattr(self, name, _convert(name, getattr(self, name), kind))
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        msgspec.structs.force_setattr(self, "stop", stop)
        if self.pruning_rate is not None and self.retention is not None:
            raise InvalidRequest("give retention or pruning_rate, not both")
        if self.deadline_ms is not None and self.deadline is not None:
            raise InvalidRequest("give deadline_ms or deadline, not both")
        self._check_choices()

    def _check_choices(self) -> None:
        if self.choices is None:
            return
        twice = next((one for i, one in enumerate(self.choices) if one in self.choices[:i]), None)
        if twice is not None:
            raise InvalidRequest(f"choices hold {twice!r:.80} twice: expected different texts")
        others = {"temperature": self.temperature > 0, "stop": bool(self.stop), "logprobs": self.logprobs is not None}
        given = [name for name, is_given in others.items() if is_given]
        if given:
            raise InvalidRequest(f"choices are answered by their likelihood: leave out {', '.join(given)}")

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

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn rather than the most probable ones."""
        return self.temperature > 0 and self.top_k != 1

    @property
    def needs_logits(self) -> bool:
        """Whether the most probable token of each step is not all that the host has to know."""
        return self.is_sampled or self.logprobs is not None or self.choices is not None


_EXPECTED = {
    "method": "the name of a method in the bundle",
    "retention": "a number in (0, 1], the share of visual tokens to keep",
    "pruning_rate": "a number in [0, 1), the share to remove",
    "visual_top_k": "1 to the model's experts per token, a whole number, or a list of them, one for each MoE layer",
    "alpha": "a number in [0, 1]",
    "seed": "a whole number, 0 or more",
    "max_new_tokens": "at least 1, a whole number",
    "max_tiles": "at least 1 local tile per picture and at most 4096, a whole number",
    "temperature": "a number, 0 (the most probable token) or more",
    "top_p": "a number in (0, 1], the share of the probability to draw from",
    "top_k": "0 or -1 (all tokens) or more, a whole number",
    "stop": "a text or a list of them, none empty",
    "logprobs": f"0 to {MOST_LOGPROBS}, a whole number, the most probable tokens beside the chosen one",
    "choices": "a list of texts, none empty, at least one",
    "deadline_ms": "a number of milliseconds above 0, from the start of the request",
    "deadline": "a time of time.monotonic, in seconds",
}

_SAMPLING = "is unknown: temperature, top_p and top_k choose among tokens; temperature 0 takes the most probable one"
_LIMIT = "is called max_new_tokens here"
_STOP = "is called stop here: texts that end the answer; the model's own stop tokens end it in any case"
_LOGPROBS = "is called logprobs here: how many tokens beside the chosen one"
_CHOICES = "is called choices here: a list of the texts that may be the answer"
_DEADLINE = "is called deadline_ms here, or deadline, a time of time.monotonic"
_OF_VLM = "is not of a request: VLM(bundle, ...) takes it"
_OF_MESSAGES = "is not an option: it belongs into the messages"
_ADVICE = {
    **dict.fromkeys(("max_tokens", "max_length", "max_completion_tokens", "max_output_tokens", "n_predict"), _LIMIT),
    **dict.fromkeys(("min_p", "typical_p", "do_sample", "sampling"), _SAMPLING),
    **dict.fromkeys(("num_beams", "num_return_sequences", "n", "best_of", "logits_processor"), _SAMPLING),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"), _SAMPLING),
    **dict.fromkeys(("stop_strings", "stop_sequences", "stopping_criteria", "eos_token_id", "stop_token_ids"), _STOP),
    **dict.fromkeys(("top_logprobs", "output_scores", "prompt_logprobs"), _LOGPROBS),
    **dict.fromkeys(("guided_choice", "choice", "guided_regex", "guided_json", "response_format"), _CHOICES),
    **dict.fromkeys(("timeout", "timeout_ms", "max_time"), _DEADLINE),
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

    if isinstance(value, str):
        # Half of a surrogate pair is no text.
        value.encode()

    if isinstance(value, (np.number, np.bool_, np.ndarray)) and not isinstance(value, np.timedelta64):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return [_plain(one) for one in value]
    if isinstance(value, (bytes, bytearray, memoryview, Set, np.timedelta64)):
        raise msgspec.ValidationError
    return value
