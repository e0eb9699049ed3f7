# SPDX-License-Identifier: Apache-2.0
"""FmmSparseMoE: contract, NumPy reference, function body, torch op."""
