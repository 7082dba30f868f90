"""Errors of the API.

ApiError
+-- Refused        the request gets a problem document: status, name, what is wrong
    +-- Unavailable    the daemon cannot answer now (503)
+-- EndpointFailed  an endpoint that this daemon asked gave no answer
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from hydrophone_schemas.rest import FieldProblem


class ApiError(Exception):
    """Root of the errors raised by ``hydrophoned.api``."""


class Refused(ApiError):  # noqa: N818  named after its cause
    """The request is answered with a problem document.

    ``name`` is the problem's name, the end of its ``type``; ``errors`` names each parameter or field that was wrong.
    """

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.name, self.detail = status, name, detail
        self.errors, self.headers = tuple(errors), dict(headers or {})


class Unavailable(Refused):
    """The daemon cannot answer now; asking again may help."""

    def __init__(self, detail: str, *, name: str = "unavailable", retry_after_s: int = 1) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, name, detail, headers={"Retry-After": str(retry_after_s)})


class EndpointFailed(ApiError):  # noqa: N818  named after its cause
    """An endpoint that this daemon asked gave no answer.

    ``passing`` says whether the next question may be answered all the same.
    """

    def __init__(self, detail: str, *, passing: bool) -> None:
        super().__init__(detail)
        self.passing = passing
