"""Errors of the learning layer.

LearnError
+-- InvalidConfig      a learner setting is out of range or contradicts another
+-- WidthMismatch      rows of another width than the dictionary was made for
+-- CheckpointError    a saved state is incomplete, damaged, or of another format
"""


class LearnError(ValueError):
    """Root of the errors raised by ``hydrophoned.learn``."""


class InvalidConfig(LearnError):  # noqa: N818  named after its cause
    """A learner setting is out of range or contradicts another."""


class WidthMismatch(LearnError):  # noqa: N818  named after its cause
    """Rows of another width than the dictionary was made for."""


class CheckpointError(LearnError):
    """A saved state is incomplete, damaged, or of another format."""
