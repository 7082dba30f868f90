"""Names of models, versions, sites and streams, and the id of a stream: ``name@version/site``.

>>> StreamId.parse("smollm2@1/model.layers.15")
StreamId(model='smollm2', version='1', site='model.layers.15')
>>> str(StreamId("smollm2", "1", "model.layers.15:input[0]"))
'smollm2@1/model.layers.15:input[0]'
"""

import re
from typing import NamedTuple, Self

from hydrophone_schemas.errors import InvalidName

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SITE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(:input|:output)?(\[\d{1,3}\])?")


class StreamId(NamedTuple):
    """One (model, version, site): the unit of learning."""

    model: str
    version: str
    site: str

    def __str__(self) -> str:
        return f"{self.model}@{self.version}/{self.site}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name@version/site``; raises :class:`InvalidName` with the part that is wrong."""
        head, slash, site = text.partition("/")
        model, at, version = head.partition("@")
        if not slash or not at:
            raise InvalidName(
                f"stream id {text!r} is not of the form name@version/site, e.g. smollm2@1/model.layers.15"
            )
        return cls(check_name("model", model), check_name("version", version), check_site(site))


def check_name(kind: str, text: str) -> str:
    """Return ``text`` if it is a valid model name or version, else raise :class:`InvalidName`."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise InvalidName(
            f"{kind} {text!r} is not valid: 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return text


def check_site(text: str) -> str:
    """Return ``text`` if it is a valid canonical site, else raise :class:`InvalidName`."""
    if not isinstance(text, str) or not _SITE.fullmatch(text):
        raise InvalidName(
            f"site {text!r} is not valid: a module path with an optional part, such as model.layers.15, "
            "model.layers.15:input or model.layers.15[0]"
        )
    return text
