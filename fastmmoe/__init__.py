# SPDX-License-Identifier: Apache-2.0
"""FastMMoE: visual tokens of a mixture-of-experts VLM use fewer experts and are pruned inside the decoder.

`VLM` and `Conversation` are the whole runtime API, imported on first use so that `import fastmmoe` stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmmoe.runtime.conversation import Conversation
    from fastmmoe.runtime.vlm import VLM

__version__ = "0.1.0"
__all__ = ["VLM", "Conversation", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Conversation":
        from fastmmoe.runtime.conversation import Conversation

        return Conversation
    if name == "VLM":
        from fastmmoe.runtime.vlm import VLM

        return VLM
    raise AttributeError(f"module 'fastmmoe' has no attribute {name!r}")
