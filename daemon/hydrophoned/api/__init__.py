"""The REST API: aiohttp endpoints over a :class:`Backend`. Only this package speaks HTTP."""

from hydrophoned.api.app import create_app, create_runner
from hydrophoned.api.backend import Backend, EncodedRows, NumberedFeatures, ReconstructedRows
from hydrophoned.api.errors import ApiError, Refused, Unavailable
from hydrophoned.api.server import HttpServer

__all__ = [
    "ApiError",
    "Backend",
    "EncodedRows",
    "HttpServer",
    "NumberedFeatures",
    "ReconstructedRows",
    "Refused",
    "Unavailable",
    "create_app",
    "create_runner",
]
