"""Opaque cursors: where the next page begins, and which list it belongs to."""

import base64
import binascii
import hashlib
from http import HTTPStatus
from typing import TypeVar

from hydrophone_schemas.rest import FieldProblem, RestModel
from pydantic import ValidationError

from hydrophoned.api.errors import Refused

_TAG_BYTES = 6
M = TypeVar("M", bound=RestModel)


def encode_cursor(position: RestModel, belongs_to: str) -> str:
    """``position`` as base64url; ``belongs_to`` names the list and all that gives it its order."""
    return base64.urlsafe_b64encode(_tag(belongs_to) + position.model_dump_json().encode()).decode().rstrip("=")


def decode_cursor(text: str, kind: type[M], belongs_to: str) -> M:
    """The position in a cursor of :func:`encode_cursor`; raises Refused (400) if it is not one of this list."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if raw[:_TAG_BYTES] != _tag(belongs_to):
            raise _OtherListError
        return kind.model_validate_json(raw[_TAG_BYTES:])
    except (binascii.Error, ValidationError, ValueError) as error:
        other = isinstance(error, _OtherListError)
        cause = "it belongs to another list, other filters or another order" if other else "it is damaged"
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "invalid-cursor",
            f"the cursor cannot be used: {cause}. Take it from 'next' of the page before, and keep the rest.",
            errors=[FieldProblem(location="query", name="cursor", message=cause)],
        ) from None


class _OtherListError(ValueError):
    """The cursor is whole but not of this list."""


def _tag(belongs_to: str) -> bytes:
    return hashlib.blake2s(belongs_to.encode(), digest_size=_TAG_BYTES).digest()
