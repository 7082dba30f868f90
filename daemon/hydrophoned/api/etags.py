"""Entity tags: an answer that the client has already is not sent again (RFC 9110, section 13.1.2)."""

import hashlib


def tag_of(content: bytes) -> str:
    """A tag that tells ``content`` from other content."""
    return hashlib.blake2s(content, digest_size=16).hexdigest()


def is_known(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match header names ``tag``.

    >>> is_known('W/"a", "b"', "b"), is_known("*", "b"), is_known('"bb"', "b"), is_known("", "b")
    (True, True, False, False)
    """
    given = (part.strip().removeprefix("W/") for part in if_none_match.split(","))
    return any(part in {"*", f'"{tag}"'} for part in given)
