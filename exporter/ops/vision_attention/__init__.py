# SPDX-License-Identifier: Apache-2.0
"""FmmVisionAttention: contract, NumPy reference, function body, torch op."""
