"""Sites: how a place in a model is written, matched against its modules and resolved.

A site is ``path[:input|:output][[index]]``. The path is a PyTorch module path or a glob over it, matched one
component at a time: ``*`` and ``?`` do not cross a dot, ``**`` does. The canonical form drops ``:output``.

>>> parse("model.layers.*:output[0]")
SitePattern(path='model.layers.*', part='output', element=0)
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

from hydrophone_schemas.names import check_site

from hydrophone.errors import InvalidSite, SiteNotFound

Part = Literal["input", "output"]

_PATTERN: Final = re.compile(r"(?P<path>[^:\[\]\s]+|\*[^:\s]*)(:(?P<part>input|output))?(\[(?P<index>\d{1,3})\])?")
_GLOB: Final = frozenset("*?")


class SitePattern(NamedTuple):
    """A site as written: a path or glob, which side of the module, and which element of a tuple."""

    path: str
    part: Part
    element: int | None


class Site(NamedTuple):
    """One resolved place: ``name`` is canonical, ``module`` the ``torch.nn.Module`` at ``path``."""

    name: str
    path: str
    part: Part
    element: int | None
    module: Any


def parse(text: str) -> SitePattern:
    """Read a site; raises :class:`InvalidSite`."""
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidSite(
            f"site {text!r} is not of the form path[:input|:output][[index]], such as model.layers.15, "
            "model.layers.*:input or encoder.0[1]"
        )
    index = match["index"]
    return SitePattern(match["path"], cast("Part", match["part"] or "output"), None if index is None else int(index))


def canonical(path: str, part: Part, index: int | None) -> str:
    """The name of a site as it appears in a stream id."""
    name = path + (":input" if part == "input" else "") + ("" if index is None else f"[{index}]")
    return check_site(name)


def resolve(model: Any, sites: Sequence[str]) -> list[Site]:
    """Modules of ``model`` (a ``torch.nn.Module``) at ``sites``, in the model's order, each site once.

    Raises :class:`InvalidSite` if a text is not a site and :class:`SiteNotFound`, with near matches, if no module fits.
    """
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    found: dict[str, Site] = {}
    for text in sites:
        pattern = parse(text)
        paths = [path for path in modules if _matches(pattern.path, path)]
        if not paths:
            raise SiteNotFound(_explain(text, pattern.path, modules))
        for path in paths:
            name = canonical(path, pattern.part, pattern.element)
            found.setdefault(name, Site(name, path, pattern.part, pattern.element, modules[path]))
    order = {path: place for place, path in enumerate(modules)}
    return sorted(found.values(), key=lambda site: order[site.path])


def middle_block(model: Any) -> str:
    """The site used when none is given: the middle of the model's longest list of like blocks.

    Raises :class:`SiteNotFound` if the model has no list of at least two blocks of one class.
    """
    lists: dict[str, list[str]] = {}
    kinds: dict[str, type] = {}
    for path, module in model.named_modules():
        parent, _, last = path.rpartition(".")
        if last.isdigit():
            if kinds.setdefault(parent, type(module)) is type(module):
                lists.setdefault(parent, []).append(path)
            else:
                lists.pop(parent, None)
                kinds[parent] = type(None)
    blocks = max(lists.values(), key=len, default=[])
    if len(blocks) < 2:
        children = ", ".join(path for path, _ in model.named_children()) or "none"
        raise SiteNotFound(
            f"{type(model).__name__} has no list of like blocks, so that no site can be chosen for it: "
            f"give sites=[...]. Its children are: {children}"
        )
    return blocks[len(blocks) // 2]


def _matches(pattern: str, path: str) -> bool:
    if not _GLOB.intersection(pattern):
        return pattern == path
    return _match_parts(pattern.split("."), path.split("."))


def _match_parts(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match_parts(pattern[1:], parts[skip:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _match_parts(pattern[1:], parts[1:])


def _explain(text: str, path: str, modules: Iterable[str]) -> str:
    names = list(modules)
    near = difflib.get_close_matches(path, names, n=5, cutoff=0.5)
    if not near:
        last = path.rpartition(".")[2]
        near = [name for name in names if name.rpartition(".")[2] == last][:5]
    if near:
        return f"no module of the model matches site {text!r}; near matches: {', '.join(near)}"
    top = ", ".join(name for name in names if "." not in name) or "none"
    return f"no module of the model matches site {text!r}; its top modules are: {top}"
