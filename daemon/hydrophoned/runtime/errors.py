"""Errors of starting and running the daemon.

RuntimeFailure
+-- ConfigError    a setting is unknown, of the wrong type or out of range
"""


class RuntimeFailure(Exception):  # noqa: N818  RuntimeError is Python's own
    """Root of the errors raised by ``hydrophoned.runtime``."""


class ConfigError(RuntimeFailure):
    """A setting is unknown, of the wrong type or out of range; the message has one line per problem."""
