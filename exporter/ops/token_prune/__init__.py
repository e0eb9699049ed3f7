# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune: contract, NumPy reference, function body, torch op."""
