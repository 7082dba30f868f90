"""The store: a DuckDB file that closed windows are appended to, and the queries of the API.

Only this package speaks SQL.
"""

from hydrophoned.store.database import Store, StoreSize
from hydrophoned.store.detections import DetectionReader
from hydrophoned.store.drift_sql import DetectionQuery, NovelQuery
from hydrophoned.store.errors import (
    BadQuery,
    BadTable,
    ExportFailed,
    QueryTimeout,
    StoreClosed,
    StoreError,
    StoreLocked,
    StoreTooNew,
    StoreUnusable,
    WriteFailed,
)
from hydrophoned.store.export import Exported, ExportRange, export_tables
from hydrophoned.store.features import FeatureQuery, SplitCell
from hydrophoned.store.labels import Label, LabelQuery, label_table
from hydrophoned.store.reader import StoreReader
from hydrophoned.store.retention import Retained
from hydrophoned.store.versions import MatchQuery
from hydrophoned.store.windows import WindowRange
from hydrophoned.store.writer import StoreWriter

__all__ = [
    "BadQuery",
    "BadTable",
    "DetectionQuery",
    "DetectionReader",
    "ExportFailed",
    "ExportRange",
    "Exported",
    "FeatureQuery",
    "Label",
    "LabelQuery",
    "MatchQuery",
    "NovelQuery",
    "QueryTimeout",
    "Retained",
    "SplitCell",
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
    "export_tables",
    "label_table",
]
