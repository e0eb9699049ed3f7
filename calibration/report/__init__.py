# SPDX-License-Identifier: Apache-2.0
"""The accuracy-latency report of a comparison bundle: fastmmoe report."""
