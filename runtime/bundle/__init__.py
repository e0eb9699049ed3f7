# SPDX-License-Identifier: Apache-2.0
"""The bundle: what it holds, whether it fits together, and that it has not changed."""
