"""Reading the configuration: one TOML file, environment variables, flags.

Flags win over ``HYDROPHONE_SECTION__FIELD`` variables, these over the file (``--config``, else ``$HYDROPHONE_CONFIG``,
else none), and the file over the defaults of :mod:`.settings`. Unknown keys are errors. An error names the place the
value came from, the setting, the value, and what would be accepted.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from hydrophoned.runtime.errors import ConfigError
from hydrophoned.runtime.settings import PREFIX, SECTIONS, Config, LearnOverride
from hydrophoned.runtime.settings_page import accepted, config_reference

__all__ = ["CONFIG_VARIABLE", "Config", "Loaded", "config_path", "config_reference", "load_config", "load_with_origins"]

CONFIG_VARIABLE: Final = "HYDROPHONE_CONFIG"
"""Environment variable that names the file where ``--config`` does not."""

Document = dict[str, dict[str, Any]]
Setting = tuple[str, ...]


class Loaded(NamedTuple):
    """A configuration and, for each setting that is no default, where its value came from."""

    config: Config
    origins: dict[tuple[str, str], str]


def config_path(path: Path | None) -> Path | None:
    """The file that is read: ``path``, else the one that ``$HYDROPHONE_CONFIG`` names, else none."""
    named = os.environ.get(CONFIG_VARIABLE)
    return path if path is not None or not named else Path(named)


def load_config(path: Path | None, overrides: Mapping[str, Mapping[str, Any]]) -> Config:
    """Merge file, environment and ``overrides`` (by section and field, from flags).

    Raises ConfigError with one line per problem.
    """
    return load_with_origins(path, overrides).config


def load_with_origins(path: Path | None, overrides: Mapping[str, Mapping[str, Any]]) -> Loaded:
    """:func:`load_config`, and where each value came from."""
    path = config_path(path)
    places = _Places()
    merged: Document = {}
    if path is not None:
        text = _read(path)
        places.add_file(path, text)
        _merge(merged, _parse(path, text), places, str(path))
    _merge(merged, _environment(), places, "the environment")
    _merge(merged, overrides, places, "the command line")
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(one, places) for one in error.errors())) from None
    return Loaded(config, {setting: places.name(setting) for setting in places.origins})


class _Places:
    """Where the values came from: by setting, and the lines of the file."""

    def __init__(self) -> None:
        self.origins: dict[tuple[str, str], str] = {}
        self._lines: dict[Setting, int] = {}
        self._file = ""

    def add_file(self, path: Path, text: str) -> None:
        self._file, self._lines = str(path), key_lines(text)

    def table(self, section: str, source: str) -> str:
        """Where ``source`` gives a whole section."""
        line = self._lines.get((section,)) if source == self._file else None
        return source if line is None else f"{source}:{line}"

    def name(self, setting: Setting) -> str:
        """Where the value of ``setting`` was given; in a file, with the line of the nearest key."""
        source = self.origins.get((setting[0], setting[1])) if len(setting) > 1 else None
        if source is None:
            given = {place for (section, _), place in self.origins.items() if section == setting[0]}
            source = self._file if self._file in given else next(iter(sorted(given)), "the defaults")
        if source != self._file:
            return source
        for length in range(len(setting), 0, -1):
            line = self._lines.get(setting[:length])
            if line is not None:
                return f"{source}:{line}"
        return source


def key_lines(text: str) -> dict[Setting, int]:
    r"""Line numbers, from 1, of the tables and keys of a TOML text; entries of an array of tables are numbered from 0.

    A scan of what people write, not a parser: keys within inline tables are not found.

    >>> key_lines("[learn]\nk = 3\n[[learn.override]]\nmatch = '*'")
    {('learn',): 1, ('learn', 'k'): 2, ('learn', 'override', '0'): 3, ('learn', 'override', '0', 'match'): 4}
    """
    found: dict[Setting, int] = {}
    table: Setting = ()
    counts: dict[Setting, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*(\[\[?)([\w.\-\s\"']+?)\]", line):
            table = _split_key(head[2])
            if head[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
            found.setdefault(table, number)
        elif key := re.match(r"\s*([\w.\-\"']+)\s*=", line):
            found.setdefault((*table, *_split_key(key[1])), number)
    return found


def _split_key(text: str) -> Setting:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(f"{path}{':' + line[1] if line else ''}: is not TOML: {error}") from None


def _environment() -> Document:
    """Sections from ``HYDROPHONE_SECTION__FIELD`` variables; a section that does not exist is an error here too."""
    for variable in os.environ:
        section, separator, _ = variable.upper().removeprefix(PREFIX).partition("__")
        if variable.upper().startswith(PREFIX) and separator and section.lower() not in SECTIONS:
            near = _suggest(section, [name.upper() for name in SECTIONS])
            raise ConfigError(f"the environment: {variable}: there is no section {section}{near}")
    try:
        return EnvSettingsSource(Config)()
    except SettingsError as error:
        raise ConfigError(
            f"the environment: {error}; a variable of a whole section or list must hold JSON, "
            f"one of a field is named {PREFIX}SECTION__FIELD"
        ) from None


def _merge(into: Document, given: Mapping[str, Any], places: _Places, source: str) -> None:
    for section, values in given.items():
        if section not in SECTIONS:
            place = places.table(section, source)
            raise ConfigError(f"{place}: there is no section [{section}]{_suggest(section, SECTIONS)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: [{section}] must be a table, not {values!r}")
        into.setdefault(section, {}).update(values)
        for field in values:
            places.origins[section, field] = source


def _explain(error: Any, places: _Places) -> str:
    """One line for one of pydantic's errors: place, setting, value, what is wrong, what is accepted."""
    setting = tuple(str(part) for part in error["loc"])
    section, field = SECTIONS[setting[0]], setting[-1]
    if "override" in setting:
        section = LearnOverride
    name = setting[0]
    for part in setting[1:]:
        name += f"[{part}]" if part.isdigit() else f".{part}"
    where = f"{places.name(setting)}: {name}"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such setting{_suggest(field, section.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    info = section.model_fields.get(field)
    if info is None:  # a whole section that does not go together; the message names its values
        return f"{where}: {message}"
    if error["type"] == "missing":
        return f"{where}: is missing: {info.description}"
    return f"{where} = {error['input']!r}: {message[:1].lower()}{message[1:]} ({accepted(info)})"


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
