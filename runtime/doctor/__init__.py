# SPDX-License-Identifier: Apache-2.0
"""fastmmoe doctor: what of this machine keeps a bundle from running well, each with the line that mends it."""
