"""Errors of exchanging dictionaries and reading rows.

A dictionary that is damaged raises ``hydrophoned.learn.errors.CheckpointError``.

FormatError
+-- UnknownFormat      a folder is in none of the known formats, or in several
+-- NotCarried         a format has no place for something the dictionary has, or we have none for what it says
+-- UnreadableRows     a file of rows is damaged, of another kind, or of another width
"""


class FormatError(ValueError):
    """Root of the errors raised by ``hydrophoned.formats``."""


class UnknownFormat(FormatError):  # noqa: N818  named after its cause
    """A folder is in none of the known formats, or in several."""


class NotCarried(FormatError):  # noqa: N818  named after its cause
    """A format has no place for something the dictionary has, or we have none for what it says."""


class UnreadableRows(FormatError):  # noqa: N818  named after its cause
    """A file of rows is damaged, of another kind, or of another width."""
