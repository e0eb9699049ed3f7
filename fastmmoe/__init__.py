# SPDX-License-Identifier: Apache-2.0
"""FastMMoE: visual tokens of a mixture-of-experts VLM use fewer experts and are pruned inside the decoder.

`VLM`, `Conversation` and `watch` are the whole runtime API, imported on first use: `import fastmmoe` stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmmoe.runtime.camera.loop import watch
    from fastmmoe.runtime.conversation import Conversation
    from fastmmoe.runtime.vlm import VLM

__version__ = "0.1.0"
__all__ = ["VLM", "Conversation", "__version__", "watch"]


def __getattr__(name: str) -> Any:
    if name == "Conversation":
        from fastmmoe.runtime.conversation import Conversation

        return Conversation
    if name == "VLM":
        from fastmmoe.runtime.vlm import VLM

        return VLM
    if name == "watch":
        from fastmmoe.runtime.camera.loop import watch

        return watch
    raise AttributeError(f"module 'fastmmoe' has no attribute {name!r}")
