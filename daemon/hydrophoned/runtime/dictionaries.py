"""What the commands of ``hydrophone dictionary`` do: import, export, train."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.errors import FormatError
from hydrophoned.formats.exchange import Exchange, from_dictionary, remarks
from hydrophoned.formats.rows import RowSource, passes
from hydrophoned.learn.config import LearnerConfig, Normalise, Variant
from hydrophoned.learn.errors import CheckpointError, InvalidConfig
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.offline import OfflineTrainer, Progress
from hydrophoned.runtime.checkpoint import load_checkpoint
from hydrophoned.runtime.control import ControlFile, read_control
from hydrophoned.runtime.versions import Origin, check_origin


class TrainOptions(NamedTuple):
    """Options of ``hydrophone dictionary train``; ``features`` 0 means 8 times the row width.

    ``control`` is the file of control rows, where ``normalise`` is "control"; ``device`` is auto, cpu or cuda.
    """

    variant: Variant
    features: int
    k: int
    batch_rows: int
    passes: int
    seed: int
    column: str | None
    sink_norm_factor: float
    holdout: float
    normalise: Normalise = "scale"
    control: Path | None = None
    device: str = "auto"


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


def give_out(source: Path, to: Path, *, form: str, wanted: Origin | None = None) -> dict[str, Any]:
    """Write a folder of our own, or a stream's newest checkpoint, in the format ``form``.

    Raises OtherOrigin where it was not learned from what is ``wanted``.
    """
    check_free(to)
    exchange = open_dictionary(source)
    if wanted is not None:
        told = exchange.metadata
        check_origin(source, Origin(told.get("fingerprint"), told.get("site"), exchange.width), wanted)
    detect.FORMATS[form].save(exchange, to)
    return _told(exchange, to, []) | {"from": str(source), "format": form}


def train(
    paths: list[Path], to: Path, options: TrainOptions, show: Callable[[float, int, Progress], None]
) -> dict[str, Any]:
    """Learn a dictionary of the rows in ``paths``; ``show(now, rows in all, progress)`` is called as it goes."""
    check_free(to)
    device = device_for(options.device)
    source = RowSource(
        paths, column=options.column, holdout=options.holdout, batch_rows=options.batch_rows, seed=options.seed
    )
    config = LearnerConfig(
        variant=options.variant,
        features=options.features,
        k=options.k,
        batch_rows=options.batch_rows,
        buffer_rows=max(LearnerConfig().buffer_rows, 8 * options.batch_rows),
        sink_norm_factor=options.sink_norm_factor,
        seed=options.seed,
        normalise=options.normalise,
    )
    control = _control(source.width, options)
    trainer = OfflineTrainer(source.width, config, device=device, control=control and control.whitening)
    total = source.training_rows * options.passes

    def timed() -> Iterator[tuple[float, NDArray[np.float32]]]:
        for rows in passes(source.training, options.passes):
            yield time.monotonic(), rows

    progress: Progress | None = None
    for progress in trainer.train(timed()):
        show(time.monotonic(), total, progress)
    skipped = source.rows_skipped
    held = trainer.score(source.held_out())
    normaliser, dictionary = trainer.normaliser, trainer.dictionary
    whitening = normaliser.whitening
    report = {
        "files": [path.name for path in paths],
        "passes": options.passes,
        "seed": options.seed,
        "normalise": options.normalise,
        "whitening_rows": whitening and whitening.rows,
        "control": control and control.report,
        "rows_skipped": skipped,
        "holdout": held._asdict(),
    } | (progress._asdict() if progress else {})
    metadata = {"notes": f"trained offline on {', '.join(path.name for path in paths)}", "training": report}
    hydrophone.save_normalised(dictionary, to, **normaliser.affine()._asdict(), metadata=metadata)
    exchange = {"variant": options.variant, "features": dictionary.features, "width": dictionary.width}
    notes = [whitening.remark] if whitening and whitening.remark else []
    return {"to": str(to), **exchange, "k": dictionary.k, **report, "notes": notes}


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
    affine = learner.normaliser.affine()
    return from_dictionary(
        learner.dictionary,
        mean=affine.mean,
        scale=affine.scale,
        whitening=affine.matrix,
        metadata={
            "model": model,
            "site": site,
            "fingerprint": about.get("fingerprint"),
            "notes": f"{learner.rows_learned} rows learned",
        },
    )


def device_for(name: str) -> torch.device:
    """The device of that name; auto takes a GPU if there is one. Raises InvalidConfig for a GPU that is not there."""
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise InvalidConfig("device = 'cuda', but torch finds no CUDA device here; take auto or cpu")
    return torch.device("cpu")


def check_free(to: Path) -> None:
    """Raise FormatError unless the folder ``to`` is still to be made: before the work, not after it."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FormatError(f"{to} exists and is not empty. Choose another folder.")


def _control(width: int, options: TrainOptions) -> ControlFile | None:
    if options.control is None:
        return None
    return read_control(options.control, width, column=options.column, sink_norm_factor=options.sink_norm_factor)


def _refused(source: Path) -> Exchange:
    form = detect.detect(source)
    raise FormatError(
        f"{source} is in the format {form}. Import it first: hydrophone dictionary import {source} --to DIR"
    )


def _told(exchange: Exchange, to: Path, notes: list[str]) -> dict[str, Any]:
    kind = {"variant": exchange.variant, "features": exchange.features, "width": exchange.width, "k": exchange.k}
    return {"to": str(to), **kind, "notes": notes}
