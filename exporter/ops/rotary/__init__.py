# SPDX-License-Identifier: Apache-2.0
"""FmmRotary: contract, NumPy reference, function body, torch op."""
