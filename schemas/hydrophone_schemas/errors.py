"""Errors of the shared layer.

SchemaError
+-- InvalidName      a model, version, site or stream id is not well formed
+-- WireError        bytes on a connection break the protocol; carries a wire error code
"""


class SchemaError(ValueError):
    """Root of the errors raised by ``hydrophone_schemas``."""


class InvalidName(SchemaError):  # noqa: N818  named after its cause
    """A model name, version, site or stream id is not well formed."""


class WireError(SchemaError):
    """Bytes on a connection break the protocol.

    ``code`` is one of :class:`hydrophone_schemas.wire.ErrorCode`, so that the receiver can be told the cause.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
