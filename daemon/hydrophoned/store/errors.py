"""Errors of the store.

StoreError
+-- StoreLocked        another process has the store open
+-- StoreTooNew        the file was written by a later version of the daemon
+-- StoreUnusable      the file cannot be opened: damaged, or no database at all
+-- StoreClosed        the store was closed
+-- BadTable           a table given to write() is not one of the store's, or has other columns
+-- BadQuery           a query was given a value that it does not know
+-- QueryTimeout       a query took longer than it may
+-- WriteFailed        a transaction failed; ``retry`` says whether it may work later
+-- ExportFailed       a file of an export exists already, or cannot be written
"""


class StoreError(Exception):
    """Root of the errors raised by ``hydrophoned.store``."""


class StoreLocked(StoreError):  # noqa: N818  named after its cause
    """Another process has the store open."""


class StoreTooNew(StoreError):  # noqa: N818  named after its cause
    """The file was written by a later version of the daemon."""


class StoreUnusable(StoreError):  # noqa: N818  named after its cause
    """The file cannot be opened."""


class StoreClosed(StoreError):  # noqa: N818  named after its cause
    """The store was closed."""


class BadTable(StoreError, ValueError):  # noqa: N818  named after its cause
    """A table is not one of the store's, or its columns are not those of ``hydrophone_schemas.tables``."""


class BadQuery(StoreError, ValueError):  # noqa: N818  named after its cause
    """A query was given a value that it does not know, such as a column to sort by."""


class QueryTimeout(StoreError):  # noqa: N818  named after its cause
    """A query took longer than it may and was stopped."""


class WriteFailed(StoreError):  # noqa: N818  named after its cause
    """A transaction failed and left nothing behind.

    ``retry`` is true where the cause may pass (no space left, no memory), false where the same write fails again.
    """

    def __init__(self, detail: str, *, retry: bool) -> None:
        super().__init__(detail)
        self.retry = retry


class ExportFailed(StoreError):  # noqa: N818  named after its cause
    """A file of an export exists already, or cannot be written."""
