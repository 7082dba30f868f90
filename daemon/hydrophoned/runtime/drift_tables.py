"""Rows of the store's tables about references, drifts, and what is said of each drift."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables
from torch import Tensor

from hydrophoned.detect.attribution import LEAST_UNITS, Attribution, Side, attribute
from hydrophoned.detect.change_point import ChangePoint, Directions, change_point, feature_change_point
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.novel import NovelUnit
from hydrophoned.detect.novel_share import NovelShare
from hydrophoned.detect.reference import Reference
from hydrophoned.detect.units import Units
from hydrophoned.detect.watch import Ended, Found
from hydrophoned.learn.frozen import FrozenEncoder
from hydrophoned.learn.record_batch import record_batch

Attributes = Callable[[int], Mapping[str, str]]
FEATURES_KEPT: Final = 50
REQUESTS_KEPT: Final = 20
SURE: Final = 0.1
"""Q-value up to which a feature counts as changed."""
_LATEST: Final = 16
"""Units taken as those after the change where its time cannot be told."""


def reference_table(stream_key: int, stratum: str, reference: Reference) -> dict[str, pa.RecordBatch]:
    """The row of a reference that was taken."""
    row = {
        "stream_key": stream_key,
        "stratum": stratum,
        "name": reference.name,
        "version": reference.version,
        "source": reference.source,
        "made": reference.made,
        "units": reference.units.count,
        "since": int(reference.units.start.min()),
        "until": int(reference.units.end.max()),
        "units_per_second": reference.units_per_second,
        "autocorrelation_time": reference.autocorrelation_time,
        "thin": reference.thin,
        "halves_p": reference.halves_p,
    }
    return {"reference": _row(row, tables.REFERENCE)}


def novel_table(stream_key: int, reference_version: int, found: list[NovelUnit]) -> dict[str, pa.RecordBatch]:
    """Rows of novel requests."""
    count = len(found)
    columns = {
        "stream_key": np.full(count, stream_key),
        "request_key": [one.request for one in found],
        "time": [one.time for one in found],
        "p": [one.p for one in found],
        "reference_version": np.full(count, reference_version),
    }
    return {"novel_request": record_batch(columns, tables.NOVEL_REQUEST)}


def ended_table(stream_key: int, ended: Ended) -> dict[str, pa.RecordBatch]:
    """The row of a drift that is over."""
    return {"detection_end": _row({"stream_key": stream_key, **ended._asdict()}, tables.DETECTION_END)}


def drift_tables(
    stream_key: int, found: Found, *, attributes: Attributes, newest_version: int, generator: torch.Generator
) -> dict[str, pa.RecordBatch]:
    """The row of a drift, and rows of what changed: features, requests that carry it, attributes."""
    drift, alarm, recent = found.drift, found.drift.alarm, found.recent
    reference = drift.reference
    directions = Directions.of(reference.units.mean, recent.mean)
    change = _change_point(found, directions, generator)
    first = _first_changed(change, found)
    after = recent.take(slice(first, None))
    said = _attribution(found, first, directions, attributes)
    began, low, high = _times(change, found)
    changed = None if said is None or said.features is None else int((said.features.q <= SURE).sum())
    row = {
        "stream_key": stream_key,
        "number": drift.number,
        "telling": found.telling,
        "stratum": drift.stratum,
        "detector": alarm.detector,
        "guarantee": str(alarm.guarantee),
        "time": alarm.time,
        "unit": alarm.unit,
        "statistic": alarm.statistic,
        "threshold": alarm.threshold,
        "run_length": alarm.run_length,
        "reference_name": reference.name,
        "reference_version": reference.version,
        "dictionary_version": drift.dictionary_version or None,
        "change_time": began,
        "change_low": low,
        "change_high": high,
        "units_after": after.count,
        "shift": None if said is None or said.after is None else float(np.nanmean(said.after)),
        "changed_features": changed,
        "dictionary_changed": drift.dictionary_version not in {0, newest_version},
    }
    rows = {"detection": _row(row, tables.DETECTION)}
    if said is None:
        return rows
    owner = {"stream_key": stream_key, "number": drift.number, "telling": found.telling}
    ids = found.encoder.ids if isinstance(found.encoder, FrozenEncoder) else None
    return rows | {
        "detection_feature": _feature_rows(owner, said, ids),
        "detection_request": _request_rows(owner, said, after),
        "detection_attribute": _attribute_rows(owner, said),
    }


def _change_point(found: Found, directions: Directions, generator: torch.Generator) -> ChangePoint | None:
    """Since when, by what the detector watches: the firings of features, which units are novel, or their means."""
    alarm = found.drift.alarm
    if alarm.detector == NovelShare.name and found.novel is not None:
        reference, recent = (_as_fired(novel) for novel in found.novel)
        return feature_change_point(reference, recent, torch.zeros(1, dtype=torch.int64), generator=generator)
    if alarm.features and found.fired is not None:
        change = feature_change_point(*found.fired, torch.tensor(alarm.features), generator=generator)
        if change is not None:
            return change
    means = found.drift.reference.units.mean, found.recent.mean
    return change_point(*means, generator=generator, directions=directions)


def _as_fired(novel: Tensor) -> Fired:
    """Whether each unit is novel, as if that were a feature's firing."""
    offsets = torch.zeros(len(novel) + 1, dtype=torch.int64)
    torch.cumsum(novel, 0, out=offsets[1:])
    return Fired(offsets, torch.zeros(int(offsets[-1]), dtype=torch.int32))


def _times(change: ChangePoint | None, found: Found) -> tuple[int | None, int | None, int | None]:
    """When the change began, in us, and the ends of the interval for it.

    None of what may have been before all units that are held, where there were earlier ones.
    """
    if change is None:
        return None, None, None
    at, low, high = (int(found.recent.start[unit]) for unit in (change.unit, change.low, change.high))
    return at if change.unit or not found.earlier else None, low if change.low or not found.earlier else None, high


def _first_changed(change: ChangePoint | None, found: Found) -> int:
    """The place among the latest units from where they count as changed."""
    if change is not None:
        return change.unit
    began = found.drift.alarm.began
    before_alarm = _LATEST if began is None else max(began + 1, LEAST_UNITS)
    return max(0, found.recent.count - before_alarm - found.since)


def _attribution(found: Found, first: int, directions: Directions, attributes: Attributes) -> Attribution | None:
    """What changed between the reference and the units from place ``first`` on; None where these are too few."""
    reference, after = found.drift.reference, found.recent.take(slice(first, None))
    named: tuple[list[Mapping[str, str]], ...] = (
        [*reference.attributes],
        [attributes(key) for key in after.request.tolist()],
    )
    sides = []
    fired = (None, None) if found.fired is None else (found.fired[0], found.fired[1].part(first, found.recent.count))
    for units, of_units, own in zip((reference.units, after), fired, named, strict=True):
        sides.append(Side(units.mean, of_units, own))
    features = 0 if found.encoder is None else found.encoder.features
    known = directions.reference, directions.recent[first:]
    try:
        return attribute(sides[0], sides[1], features=features, directions=known)
    except InsufficientReference:
        return None


def _feature_rows(owner: dict[str, int], said: Attribution, ids: Tensor | None) -> pa.RecordBatch:
    found = said.features
    count = 0 if found is None else min(len(found.feature), FEATURES_KEPT)
    columns: dict[str, Any] = {name: np.full(count, value) for name, value in owner.items()}
    columns["rank"] = np.arange(count)
    if found is None:
        names = (
            "feature",
            "feature_id",
            "rate_before",
            "rate_after",
            "units_before",
            "units_after",
            "effect",
            "p",
            "q",
        )
        return record_batch(columns | {name: np.zeros(0) for name in names}, tables.DETECTION_FEATURE)
    feature = found.feature[:count]
    columns |= {name: getattr(found, name)[:count] for name in ("rate_before", "rate_after", "effect", "p", "q")}
    columns |= {
        "feature": feature,
        "feature_id": pa.nulls(count, pa.int64()) if ids is None else ids.numpy()[feature],
        "units_before": np.full(count, found.units_before),
        "units_after": np.full(count, found.units_after),
    }
    return record_batch(columns, tables.DETECTION_FEATURE)


def _request_rows(owner: dict[str, int], said: Attribution, after: Units) -> pa.RecordBatch:
    places = said.carriers(REQUESTS_KEPT)
    scores = np.zeros(0) if said.after is None else said.after[places]
    count = len(places)
    return record_batch(
        {
            **{name: np.full(count, value) for name, value in owner.items()},
            "rank": np.arange(count),
            "request_key": after.request.numpy()[places],
            "score": scores,
        },
        tables.DETECTION_REQUEST,
    )


def _attribute_rows(owner: dict[str, int], said: Attribution) -> pa.RecordBatch:
    found = said.concentrated
    return record_batch(
        {
            **{name: np.full(len(found), value) for name, value in owner.items()},
            "attribute": [one.name for one in found],
            "value": [one.value for one in found],
            "units_before": [one.before for one in found],
            "units_after": [one.after for one in found],
            **{
                name: pa.array([getattr(one, name) for one in found], pa.float64())
                for name in ("share_before", "share_after", "share_q", "shift", "elsewhere", "shift_q")
            },
        },
        tables.DETECTION_ATTRIBUTE,
    )


def _row(values: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    return record_batch({name: [value] for name, value in values.items()}, schema)
