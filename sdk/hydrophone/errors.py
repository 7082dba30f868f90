"""Errors of the SDK. All are raised while something is being set up or called by the user, never inside a hook.

HydrophoneError
+-- InvalidOption     an argument of attach, request or log is not usable
+-- InvalidSite       the text of a site is not well formed
+-- SiteNotFound      no module of the model matches a site; names near matches
+-- CannotHook        hooks cannot work on this model
+-- InvalidArray      log() or drift.compare() was given what it cannot read as rows of numbers, or compare
+-- DaemonNotFound    no daemon listens and none is installed
+-- DaemonFailed      an embedded daemon did not start
+-- DaemonUnreachable nothing answers at the API's address
+-- RequestRefused    the API refused a request; carries its detail
+-- DictionaryChanged a dictionary was replaced while it was measured
"""


class HydrophoneError(Exception):
    """Root of the errors raised by ``hydrophone``."""


class InvalidOption(HydrophoneError, ValueError):  # noqa: N818  named after its cause
    """An argument is not usable; the message names it, its value and what is accepted."""


class InvalidSite(InvalidOption):
    """The text of a site is not of the form ``path[:input|:output][[index]]``."""


class SiteNotFound(HydrophoneError, LookupError):  # noqa: N818  named after its cause
    """No module of the model matches a site."""


class CannotHook(HydrophoneError):  # noqa: N818  named after its cause
    """Hooks cannot work on this model, as with ``torch.compile(fullgraph=True)``."""


class InvalidArray(HydrophoneError, ValueError):  # noqa: N818  named after its cause
    """What was given to ``log`` or ``drift.compare`` is not rows of numbers, or not such as can be compared."""


class DaemonNotFound(HydrophoneError):  # noqa: N818  named after its cause
    """No daemon listens at the default places, and the daemon is not installed here."""


class DaemonFailed(HydrophoneError):  # noqa: N818  named after its cause
    """An embedded daemon ended, or did not listen in time; the message holds the end of its output."""


class DaemonUnreachable(HydrophoneError):  # noqa: N818  named after its cause
    """Nothing answers at the address of the daemon's API."""


class RequestRefused(HydrophoneError):  # noqa: N818  named after its cause
    """The daemon's API refused a request; the message holds the status and the problem's detail."""


class DictionaryChanged(HydrophoneError):  # noqa: N818  named after its cause
    """A stream's dictionary got a new version while it was being measured."""
