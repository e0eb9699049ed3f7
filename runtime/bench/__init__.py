# SPDX-License-Identifier: Apache-2.0
"""fastmmoe bench: a bundle's times on this machine, part by part, beside the least that the machine could take."""
