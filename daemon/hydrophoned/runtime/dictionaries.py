"""What the commands of ``hydrophone dictionary`` do: import, export, train."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.errors import FormatError
from hydrophoned.formats.exchange import Exchange, from_dictionary, remarks
from hydrophoned.formats.rows import RowSource, passes
from hydrophoned.learn.config import LearnerConfig, Variant
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.offline import OfflineTrainer, Progress
from hydrophoned.runtime.checkpoint import load_checkpoint


class TrainOptions(NamedTuple):
    """Options of ``hydrophone dictionary train``; ``features`` 0 means 8 times the row width."""

    variant: Variant
    features: int
    k: int
    batch_rows: int
    passes: int
    seed: int
    column: str | None
    sink_norm_factor: float
    holdout: float


def bring_in(source: Path, to: Path, *, form: str | None, k: int | None) -> dict[str, Any]:
    """Make a folder of our own of another format's; say what it is. ``k`` stands in where the file has none."""
    check_free(to)
    name = form or detect.detect(source)
    exchange = detect.load(source, name)
    if k is not None:
        if exchange.k not in (None, k):
            raise FormatError(f"{source} says k = {exchange.k} itself; leave --k away")
        exchange = replace(exchange, k=k)
    hydrophone.save(exchange, to)
    return _told(exchange, to, remarks(exchange)) | {"from": str(source), "format": name}


def give_out(source: Path, to: Path, *, form: str) -> dict[str, Any]:
    """Write a folder of our own, or a stream's newest checkpoint, in the format ``form``."""
    check_free(to)
    exchange = open_dictionary(source)
    detect.FORMATS[form].save(exchange, to)
    return _told(exchange, to, []) | {"from": str(source), "format": form}


def train(
    paths: list[Path], to: Path, options: TrainOptions, show: Callable[[float, int, Progress], None]
) -> dict[str, Any]:
    """Learn a dictionary of the rows in ``paths``; ``show(now, rows in all, progress)`` is called as it goes."""
    check_free(to)
    source = RowSource(paths, column=options.column, holdout=options.holdout, batch_rows=options.batch_rows)
    config = LearnerConfig(
        variant=options.variant,
        features=options.features,
        k=options.k,
        batch_rows=options.batch_rows,
        buffer_rows=max(LearnerConfig().buffer_rows, 8 * options.batch_rows),
        sink_norm_factor=options.sink_norm_factor,
        seed=options.seed,
    )
    trainer = OfflineTrainer(source.width, config)
    total = source.training_rows * options.passes

    def timed() -> Iterator[tuple[float, NDArray[np.float32]]]:
        for rows in passes(source.training, options.passes):
            yield time.monotonic(), rows

    progress: Progress | None = None
    for progress in trainer.train(timed()):
        show(time.monotonic(), total, progress)
    skipped = source.rows_skipped
    held = trainer.score(source.held_out())
    report = {
        "files": [path.name for path in paths],
        "passes": options.passes,
        "seed": options.seed,
        "rows_skipped": skipped,
        "holdout": held._asdict(),
    } | (progress._asdict() if progress else {})
    metadata = {"notes": f"trained offline on {', '.join(path.name for path in paths)}", "training": report}
    normaliser, dictionary = trainer.normaliser, trainer.dictionary
    hydrophone.save_normalised(dictionary, to, mean=normaliser.mean, scale=normaliser.scale, metadata=metadata)
    exchange = {"variant": options.variant, "features": dictionary.features, "width": dictionary.width}
    return {"to": str(to), **exchange, "k": dictionary.k, **report}


def open_dictionary(source: Path) -> Exchange:
    """The dictionary of a folder of our own, or of a stream's folder of checkpoints, as one of raw rows."""
    if (source / "state.json").is_file():
        raise CheckpointError(f"{source} is one checkpoint of a stream. Name the folder above, whose newest is taken.")
    if not any(source.glob("checkpoint-*")):
        return detect.load(source, hydrophone.NAME) if detect.detect(source) == hydrophone.NAME else _refused(source)
    found = load_checkpoint(source)
    if found is None:
        raise CheckpointError(f"{source} holds no checkpoint that can be read.")
    state, about = found
    try:
        known = {field.name for field in fields(LearnerConfig)}
        config = LearnerConfig(**{name: value for name, value in about["learner"].items() if name in known})
        learner = StreamLearner(0, int(about["width"]), config)
        stream = str(about["stream"])
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: the checkpoint does not say what it is of: {error!r}") from error
    learner.load_state(state)
    if not learner.dictionary_version:
        raise CheckpointError(f"{source}: stream {stream} had too few rows for a dictionary when this was saved.")
    model, _, site = stream.partition("/")
    normaliser = learner.normaliser
    return from_dictionary(
        learner.dictionary,
        mean=normaliser.mean,
        scale=normaliser.scale,
        metadata={"model": model, "site": site, "notes": f"{learner.rows_learned} rows learned"},
    )


def check_free(to: Path) -> None:
    """Raise FormatError unless the folder ``to`` is still to be made: before the work, not after it."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FormatError(f"{to} exists and is not empty. Choose another folder.")


def _refused(source: Path) -> Exchange:
    form = detect.detect(source)
    raise FormatError(
        f"{source} is in the format {form}. Import it first: hydrophone dictionary import {source} --to DIR"
    )


def _told(exchange: Exchange, to: Path, notes: list[str]) -> dict[str, Any]:
    kind = {"variant": exchange.variant, "features": exchange.features, "width": exchange.width, "k": exchange.k}
    return {"to": str(to), **kind, "notes": notes}
