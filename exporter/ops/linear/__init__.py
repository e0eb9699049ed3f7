# SPDX-License-Identifier: Apache-2.0
"""FmmLinear: contract, NumPy reference, function body, torch op."""
