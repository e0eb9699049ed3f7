# SPDX-License-Identifier: Apache-2.0
"""Pruning methods inside the decoder, and the settings an export resolves."""
