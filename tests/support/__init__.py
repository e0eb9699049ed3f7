# SPDX-License-Identifier: Apache-2.0
"""Helpers and data that tests of several folders import. What pytest makes for a test is a fixture of a conftest.py."""
