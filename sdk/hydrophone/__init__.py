"""Listen inside running neural models.

    import hydrophone

    tap = hydrophone.attach(model, sites=["model.layers.15"])

:func:`attach` hooks a PyTorch model; :func:`log` takes rows from anything else. Importing this package imports no
torch.
"""

from hydrophone.errors import (
    CannotHook,
    DaemonFailed,
    DaemonNotFound,
    HydrophoneError,
    InvalidArray,
    InvalidOption,
    InvalidSite,
    SiteNotFound,
)
from hydrophone.log import flush, log
from hydrophone.producer import VERSION
from hydrophone.requests import Scope
from hydrophone.tap import Status, Tap, attach

__version__ = VERSION

__all__ = [
    "CannotHook",
    "DaemonFailed",
    "DaemonNotFound",
    "HydrophoneError",
    "InvalidArray",
    "InvalidOption",
    "InvalidSite",
    "Scope",
    "SiteNotFound",
    "Status",
    "Tap",
    "__version__",
    "attach",
    "flush",
    "log",
]
