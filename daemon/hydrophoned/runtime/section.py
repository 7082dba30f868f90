"""What every section of the settings has, and what several of them read."""

from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator


def _read_names(value: Any) -> Any:
    """Names with commas between, as a flag gives them; what is no text passes unchanged."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], BeforeValidator(_read_names)]


class Section(BaseModel):
    """What every section has: no unknown keys, no change after loading, ``none`` for what can be absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _absent(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and value.lower() == "none" and info.field_name is not None:
            return None if NoneType in get_args(cls.model_fields[info.field_name].annotation) else value
        return value
