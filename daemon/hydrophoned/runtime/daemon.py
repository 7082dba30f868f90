"""The daemon: wires ingest, learners, store and API together, and owns their lives."""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from aiohttp import web
from hydrophone_schemas import tables

from hydrophoned.api import create_app
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.server import IngestServer
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.rows import Rows
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.checkpoint import load_json, write_json_atomically
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import Config
from hydrophoned.runtime.recorder import Recorder
from hydrophoned.runtime.streams import Stream, StreamRegistry
from hydrophoned.store import Store, StoreReader, StoreWriter

_log = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS = 1.0


class Ready(NamedTuple):
    """Where a started daemon listens."""

    socket: str | None
    tcp: str | None
    http: str | None
    pid: int


class Daemon:
    """One daemon on one data directory. It is the :class:`~hydrophoned.ingest.sink.Sink` of its ingest server.

    Everything here runs on the event loop's thread, but for learners and the store's writer, which have their own.
    """
