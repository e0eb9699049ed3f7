# SPDX-License-Identifier: Apache-2.0
"""Where the time of vision, prefill and decoding goes: node by node, part by part, beside the least it can take."""
