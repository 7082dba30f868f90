"""What every model of the REST API is made of: strict types, times in UTC, and the constants of its answers."""

from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.functional_validators import AfterValidator

JSON_TYPE: Final = "application/json"
PROBLEM_TYPE: Final = "application/problem+json"
ARROW_TYPE: Final = "application/vnd.apache.arrow.stream"
PROBLEM_URN: Final = "urn:hydrophone:problem:"
"""What every problem's ``type`` begins with; the rest is its name, listed in docs/reference/rest.md."""
NEXT_KEY: Final = b"hydrophone.next"
"""Schema metadata of an Arrow answer that holds the cursor of the next page; absent on the last."""


def _require_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("a time needs its zone: end it with Z or an offset such as +02:00")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time must lie in the years 1 to 9999 in UTC") from None


def format_time(time: datetime) -> str:
    """ISO 8601 in UTC with ``Z``, microseconds where there are any.

    >>> format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05Z'
    """
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


Time = Annotated[
    datetime,
    AfterValidator(_require_utc),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Count = Annotated[int, Field(ge=0)]
SINGLE: Final = WithJsonSchema({"type": "number", "format": "float"})
"""Marks numbers in single precision, which are float32 in Arrow too."""
Single = Annotated[float, SINGLE]


class RestModel(BaseModel):
    """What every model of the API has: strict types, no unknown fields, no change after it is made."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_serialization_defaults_required=True
    )
