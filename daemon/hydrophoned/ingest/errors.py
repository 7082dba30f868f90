"""Errors of ingestion.

    IngestError
    +-- StreamConflict    a stream of that id exists for another model, or there are too many
    |   +-- WidthMismatch a stream of that id exists with another row width
    +-- CannotListen      a socket cannot be opened: the address is taken, not local, or not permitted

Faults of a peer's bytes are :class:`hydrophone_schemas.errors.WireError`.
"""


class IngestError(Exception):
    """Root of the errors raised by ``hydrophoned.ingest``."""


class StreamConflict(IngestError):  # noqa: N818  named after its cause
    """A stream of that id exists for another model, or there are too many."""


class WidthMismatch(StreamConflict):
    """A stream of that id exists with another row width."""


class CannotListen(IngestError):  # noqa: N818  named after its cause
    """A socket cannot be opened; the message says why and what to do."""
