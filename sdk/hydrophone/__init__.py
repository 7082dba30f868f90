"""Listen inside running neural models.

    import hydrophone

    tap = hydrophone.attach(model, sites=["model.layers.15"])

:func:`attach` hooks a PyTorch model; :func:`log` takes rows from anything else; :func:`loss_recovered` says how much of
the model's loss a dictionary keeps; :func:`drift.compare` compares two samples; :class:`Client` asks the daemon about
features. Importing this package imports no torch.
"""

from hydrophone import drift as drift
from hydrophone.client import Client
from hydrophone.errors import (
    CannotHook,
    DaemonFailed,
    DaemonNotFound,
    DaemonUnreachable,
    DictionaryChanged,
    HydrophoneError,
    InvalidArray,
    InvalidOption,
    InvalidSite,
    RequestRefused,
    SiteNotFound,
)
from hydrophone.log import flush, log
from hydrophone.loss import LossRecovered, loss_recovered
from hydrophone.producer import VERSION
from hydrophone.requests import Scope
from hydrophone.tap import Status, Tap, attach

__version__ = VERSION

__all__ = [
    "CannotHook",
    "Client",
    "DaemonFailed",
    "DaemonNotFound",
    "DaemonUnreachable",
    "DictionaryChanged",
    "HydrophoneError",
    "InvalidArray",
    "InvalidOption",
    "InvalidSite",
    "LossRecovered",
    "RequestRefused",
    "Scope",
    "SiteNotFound",
    "Status",
    "Tap",
    "__version__",
    "attach",
    "flush",
    "log",
    "loss_recovered",
]
