"""Which format a folder is in, and how each is read and written."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from hydrophoned.formats import dictionary_learning, hydrophone, saelens, sparsify
from hydrophoned.formats.errors import UnknownFormat
from hydrophoned.formats.exchange import Exchange
from hydrophoned.learn.errors import CheckpointError, LearnError
from hydrophoned.learn.sae import files


class Format(NamedTuple):
    """A format: the two files that tell it, and its functions."""

    config: str
    weights: str
    load: Callable[[Path], Exchange]
    save: Callable[[Exchange, Path], None]


FORMATS: Final = {
    hydrophone.NAME: Format(files.CONFIG, files.TENSORS, hydrophone.load, hydrophone.save),
    saelens.NAME: Format(saelens.CONFIG, saelens.WEIGHTS, saelens.load, saelens.save),
    sparsify.NAME: Format(sparsify.CONFIG, sparsify.WEIGHTS, sparsify.load, sparsify.save),
    dictionary_learning.NAME: Format(
        dictionary_learning.CONFIG, dictionary_learning.WEIGHTS, dictionary_learning.load, dictionary_learning.save
    ),
}


def detect(directory: Path) -> str:
    """Name of the format that ``directory`` is in. Raises UnknownFormat, which says what was looked for, or where."""
    if not directory.is_dir():
        raise UnknownFormat(f"{directory} is no folder. Name the folder that holds a dictionary's files.")
    found = [name for name, one in FORMATS.items() if (directory / one.weights).is_file()]
    if len(found) > 1:
        raise UnknownFormat(f"{directory} holds files of {' and '.join(found)}. Name one with --format.")
    if found:
        return found[0]
    below = [
        path.name
        for path in sorted(directory.iterdir())
        if path.is_dir() and any((path / one.weights).is_file() for one in FORMATS.values())
    ]
    if below:
        raise UnknownFormat(
            f"{directory} holds no dictionary itself, but in {', '.join(below[:5])}. Name one of these."
        )
    wanted = ", ".join(f"{one.weights} ({name})" for name, one in FORMATS.items())
    raise UnknownFormat(f"{directory} holds none of {wanted}.")


def load(directory: Path, form: str | None = None) -> Exchange:
    """The dictionary in ``directory``, in the format ``form`` or the one it is found to be in."""
    try:
        return FORMATS[form or detect(directory)].load(directory)
    except LearnError as error:  # what no single file says wrong does not name one
        raise error if str(directory) in str(error) else CheckpointError(f"{directory}: {error}") from error
