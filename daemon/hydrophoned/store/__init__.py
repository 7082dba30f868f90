"""The store: a DuckDB file that closed windows are appended to, and the queries of the API.

Only this package speaks SQL.
"""

from hydrophoned.store.database import Store, StoreSize
from hydrophoned.store.errors import (
    BadQuery,
    BadTable,
    QueryTimeout,
    StoreClosed,
    StoreError,
    StoreLocked,
    StoreTooNew,
    StoreUnusable,
    WriteFailed,
)
from hydrophoned.store.features import FeatureQuery
from hydrophoned.store.reader import StoreReader
from hydrophoned.store.retention import Retained
from hydrophoned.store.windows import WindowRange
from hydrophoned.store.writer import StoreWriter

__all__ = [
    "BadQuery",
    "BadTable",
    "FeatureQuery",
    "QueryTimeout",
    "Retained",
    "Store",
    "StoreClosed",
    "StoreError",
    "StoreLocked",
    "StoreReader",
    "StoreSize",
    "StoreTooNew",
    "StoreUnusable",
    "StoreWriter",
    "WindowRange",
    "WriteFailed",
]
