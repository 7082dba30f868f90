"""Errors of the learning layer.

LearnError
+-- InvalidConfig      a learner setting is out of range or contradicts another
+-- WidthMismatch      rows of another width than the dictionary was made for
+-- RowsNotFinite      rows to learn from hold NaN or Inf, or are far too large
+-- NoDictionary       there are too few rows for a dictionary yet
+-- CheckpointError    a saved state is incomplete, damaged, or of another format
    +-- OtherOrigin        it was learned from another model or site, or from rows of another width
"""


class LearnError(ValueError):
    """Root of the errors raised by ``hydrophoned.learn``."""


class InvalidConfig(LearnError):  # noqa: N818  named after its cause
    """A learner setting is out of range or contradicts another."""


class WidthMismatch(LearnError):  # noqa: N818  named after its cause
    """Rows of another width than the dictionary was made for."""


class RowsNotFinite(LearnError):  # noqa: N818  named after its cause
    """Rows to learn from hold NaN or Inf, or are far too large."""


class NoDictionary(LearnError):  # noqa: N818  named after its cause
    """There are too few rows for a dictionary yet."""


class CheckpointError(LearnError):
    """A saved state is incomplete, damaged, or of another format."""


class OtherOrigin(CheckpointError):  # noqa: N818  named after its cause
    """A saved state was learned from another model or site, or from rows of another width."""
