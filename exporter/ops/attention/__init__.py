# SPDX-License-Identifier: Apache-2.0
"""FmmAttention: contract, NumPy reference, function body, torch op."""
