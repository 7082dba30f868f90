"""The settings as people read them: the reference page, a TOML file, and what a field accepts."""

import json
from typing import Any, Final, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hydrophoned.runtime.settings import SECTIONS, Config, LearnOverride

_SIGNS: Final = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))
_SHOWN_DEFAULTS: Final = {
    # these depend on the user and the machine; the page is the same everywhere
    "data_dir": "`$STATE_DIRECTORY`, else `$XDG_DATA_HOME/hydrophone/daemon` (`~/.local/share/hydrophone/daemon`)",
    "socket": "`$XDG_RUNTIME_DIR/hydrophone/ingest.sock`, else `/tmp/hydrophone-UID/ingest.sock`",
    "socket_mode": "`0o600`",
    "override": "none",
    "split_by": "none",
    "strata_by": "none",
}


def accepted(info: FieldInfo) -> str:
    """What a field accepts and what it means, in a few words for an error message."""
    return f"{info.description}{_bounds(info)}"


def config_reference() -> str:
    """The page ``docs/reference/config.md``, in Markdown."""
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        parts.append(f"## [{name}]\n\n{section.__doc__}\n\n{_table(section.model_fields)}")
    match = {"match": LearnOverride.model_fields["match"]}
    parts.append(f"## [[learn.override]]\n\n{_OVERRIDE}\n\n{_table(match)}")
    return "\n".join(parts)


def as_document(config: Config) -> dict[str, dict[str, Any]]:
    """The settings in force by section and field, in JSON's types; of an override only what it gives."""
    document = config.model_dump(mode="json")
    document["learn"]["override"] = [one.model_dump(mode="json", exclude_unset=True) for one in config.learn.override]
    return document


def as_toml(config: Config, origins: dict[tuple[str, str], str]) -> str:
    """The settings in force, as a TOML file that gives the same; what is no default says where it comes from."""
    lines = []
    for section, values in as_document(config).items():
        lines.append(f"[{section}]")
        for field, value in values.items():
            if field == "override":
                continue
            origin = origins.get((section, field))
            absent = value is None and SECTIONS[section].model_fields[field].default is None
            shown = f"# {field} = none" if absent else f"{field} = {_toml(field, value)}"
            lines.append(shown + (f"  # from {origin}" if origin else ""))
        for one in values.get("override", ()):
            lines += ["", "[[learn.override]]", *(f"{field} = {_toml(field, value)}" for field, value in one.items())]
        lines.append("")
    return "\n".join(lines)


def _table(fields: dict[str, FieldInfo]) -> str:
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, info in fields.items():
        lines.append(f"| `{name}` | {_default(name, info)} | {info.description}{_bounds(info)} |")
    return "\n".join(lines) + "\n"


def _default(name: str, info: FieldInfo) -> str:
    if name in _SHOWN_DEFAULTS:
        return _SHOWN_DEFAULTS[name]
    if info.default is PydanticUndefined:
        return "(required)"
    return "none" if info.default is None else f"`{_number(name, info.default)}`"


def _bounds(info: FieldInfo) -> str:
    if (info.description or "").endswith("octal"):
        return ""  # its bounds say no more than that
    name = "bytes" if "in bytes" in (info.description or "") else ""
    parts = [
        f"{word} {_number(name, getattr(rule, sign))}"
        for sign, word in _SIGNS
        for rule in info.metadata
        if getattr(rule, sign, None) is not None
    ]
    choices = [str(choice) for choice in get_args(info.annotation) if isinstance(choice, str)]
    if choices:
        parts.append(f"one of {', '.join(choices)}")
    return f"; {', '.join(parts)}" if parts else ""


def _number(name: str, value: Any) -> str:
    """A number as people write it; sizes with their unit."""
    if isinstance(value, int) and "bytes" in name:
        for power, unit in ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value >= 1 << power and value % (1 << power) == 0:
                return f"{value >> power} {unit}"
    return str(value)


def _toml(field: str, value: Any) -> str:
    """A scalar in TOML; JSON text is the same for strings, numbers and booleans."""
    if field == "socket_mode":
        return f"0o{value:o}"
    return json.dumps("none" if value is None else value)


_HEAD: Final = """# Configuration

One TOML file, environment variables and flags. The file is the one that `--config FILE` names, else the one that
`$HYDROPHONE_CONFIG` names, else none: no other place is looked at. A variable is named `HYDROPHONE_SECTION__FIELD`, for
example `HYDROPHONE_LEARN__FEATURES=4608`. Flags win over the environment, the environment over the file, the file over
the defaults. Any setting can be given as a flag: `hydrophone serve --set learn.features=4608`.

A setting that does not exist is an error that names the nearest one that does. `hydrophone config check` says whether
all is well, `hydrophone config show` what is in force and where it comes from, and `hydrophone config schema` prints a
JSON Schema for editors. Sizes in bytes may be written with a unit (`"64MiB"`); `none` switches off what can be absent.

```toml
[ingest]
queue_bytes = "128MiB"

[learn]
k = 32

[[learn.override]]
match = "smollm2@*/model.layers.15"
features = 4608
```

This page is made from the settings' own descriptions.
"""
_OVERRIDE: Final = """Settings of some streams: `match`, and any fields of `[learn]` but `device` and `idle_seconds`,
with the values that hold for the streams whose id matches. Where several match a stream, later ones win."""
