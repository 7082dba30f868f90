"""The state of a watch, by part, as checkpoints keep it."""

from typing import Any

from hydrophoned.detect.reference import Reference
from hydrophoned.detect.units import Units

State = dict[str, dict[str, Any]]


def of_units(units: Units) -> dict[str, Any]:
    """Columns by name."""
    return units._asdict()


def to_units(state: dict[str, Any]) -> Units:
    """What :func:`of_units` gave."""
    return Units(**{name: state[name] for name in Units._fields})


def of_reference(reference: Reference) -> dict[str, Any]:
    """Columns of its units, and what is said of them."""
    about = reference._asdict()
    del about["units"]
    return about | of_units(reference.units)


def to_reference(state: dict[str, Any]) -> Reference:
    """What :func:`of_reference` gave."""
    named = {name: state[name] for name in Reference._fields if name != "units"}
    return Reference(units=to_units(state), **named)
