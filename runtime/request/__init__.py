# SPDX-License-Identifier: Apache-2.0
"""From messages and pictures to tensors, and from tokens to text."""
