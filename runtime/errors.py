# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. The commands print them as one line and exit with code 2."""


class FastmmoeError(Exception):
    """Base of every error the commands print without a traceback."""


class InvalidRequest(FastmmoeError, ValueError):
    """An argument or an input is outside what the model or the method allows."""


class UnsupportedModel(FastmmoeError):
    """A checkpoint or its configuration holds something this version does not implement, or is damaged."""


class BundleMismatch(FastmmoeError):
    """A bundle, a native library and this version do not belong together, or a bundle is damaged."""


class NotFinite(FastmmoeError, ArithmeticError):
    """The model has computed NaN or infinity, of which no answer can be made."""


class RunFailed(FastmmoeError):
    """ONNX Runtime has ended the run of a graph with an error."""
