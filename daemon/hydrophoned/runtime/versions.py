"""Published versions of a stream's dictionary on disk: a folder each, written whole or not at all, and never changed.

    DIR/v000007/dictionary.safetensors   weights and normaliser
    DIR/v000007/config.json              settings, digest, and what it was learned from

They are in our own format (:mod:`hydrophoned.learn.sae.files`), without the optimiser's moments: the commands of
``hydrophone dictionary`` take them as they are.
"""

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tarfile import BLOCKSIZE, TarInfo
from typing import Any, Final, NamedTuple

import pyarrow.compute as pc
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hydrophoned.api.backend import ArtefactFiles
from hydrophoned.learn.errors import CheckpointError, OtherOrigin
from hydrophoned.learn.identity import KINDS
from hydrophoned.learn.publication import Artefact, Published
from hydrophoned.learn.sae import files

_log = logging.getLogger(__name__)
_CHUNK: Final = 1 << 20


class Origin(NamedTuple):
    """What a dictionary was learned from, or is to be applied to; None is not compared.

    ``fingerprint`` is the model's, ``site`` the place in it, ``width`` that of its rows.
    """

    fingerprint: str | None = None
    site: str | None = None
    width: int | None = None


def write(directory: Path, artefact: Artefact, stream_id: str, origin: Origin, *, keep: int) -> Path:
    """Write ``artefact`` as a version in ``directory``, and return its folder; the newest ``keep`` remain.

    Raises FileExistsError for a version that is there already, and OSError when the disk does not take it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    folder = folder_of(directory, artefact.version)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already, and a published version never changes")
    model, _, _ = stream_id.partition("/")
    about = artefact.document["about"]
    about = about | {"metadata": {"model": model, "stream": stream_id, **origin._asdict(), **about["metadata"]}}
    draft = directory / f".v{artefact.version:06d}.draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        text = files.config_text(artefact.document | {"about": about})
        for name, content in ((files.TENSORS, artefact.tensors), (files.CONFIG, text.encode())):
            _write_once(draft / name, content)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync_folder(directory)
    for number in numbers(directory)[: -max(1, keep)]:
        shutil.rmtree(folder_of(directory, number))
    return folder


def load(folder: Path, wanted: Origin | None = None) -> files.Saved:
    """The version in ``folder``, its digest verified.

    Raises CheckpointError for one that is damaged, and OtherOrigin, with both sides, for one that was learned from
    something else than ``wanted``.
    """
    if wanted is not None:
        check_origin(folder, origin_of(folder), wanted)
    return files.read(folder)


def origin_of(folder: Path) -> Origin:
    """What the version in ``folder`` says of itself. Raises CheckpointError."""
    document = files.read_json(folder / files.CONFIG)
    try:
        told = document["about"]["metadata"]
        return Origin(told.get("fingerprint"), told.get("site"), int(document["config"]["width"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / files.CONFIG} does not say what it was learned from: {error!r}") from error


def check_origin(what: object, found: Origin, wanted: Origin) -> None:
    """Raise OtherOrigin unless ``found`` is as ``wanted``."""
    differing = [
        (name, has, asked)
        for name, has, asked in zip(Origin._fields, found, wanted, strict=True)
        if asked is not None and has != asked
    ]
    if differing:
        told = "; ".join(
            f"{name} {has if has is not None else 'unknown'}, not {asked}" for name, has, asked in differing
        )
        raise OtherOrigin(
            f"{what} was learned from something else: {told}. Its features mean nothing there: use a dictionary of "
            "that model and site."
        )


def numbers(directory: Path) -> list[int]:
    """The versions that are kept in ``directory``, rising."""
    found = (re.fullmatch(r"v(\d{6,})", path.name) for path in directory.glob("v*"))
    return sorted(int(one[1]) for one in found if one)


class Given(NamedTuple):
    """What a version gave out last: its number, the first feature id that it did not, and its ids, int64 [F]."""

    version: int
    next_id: int
    ids: Tensor


def last_given(directory: Path) -> Given | None:
    """Of the highest version in ``directory``; None where there is none. Raises CheckpointError."""
    kept = numbers(directory)
    if not kept:
        return None
    folder = folder_of(directory, kept[-1])
    document = files.read_json(folder / files.CONFIG)
    try:
        next_id = int(document["about"]["metadata"]["training"]["next_id"])
        with safe_open(folder / files.TENSORS, framework="pt") as file:
            return Given(kept[-1], next_id, file.get_tensor("beside/identity.ids"))
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not say which ids it gave: {error!r}") from error


def artefact_files(folder: Path) -> ArtefactFiles | None:
    """The version in ``folder`` as an uncompressed tar of its folder; None where it is not kept (any more)."""
    try:
        digest = str(files.read_json(folder / files.CONFIG)["tensors_sha256"])
        paths = (folder / files.CONFIG, folder / files.TENSORS)
        entries = [(path, _entry(folder.name, path)) for path in paths]
    except (FileNotFoundError, CheckpointError, KeyError):
        return None

    def chunks() -> Iterator[bytes]:
        for path, entry in entries:
            yield entry.tobuf()
            with path.open("rb") as file:
                while part := file.read(_CHUNK):
                    yield part
            yield bytes(_padded(entry.size) - entry.size)
        yield bytes(2 * BLOCKSIZE)

    nbytes = sum(BLOCKSIZE + _padded(entry.size) for _, entry in entries) + 2 * BLOCKSIZE
    return ArtefactFiles(digest, nbytes, f"{folder.name}.tar", chunks)


def folder_of(directory: Path, version: int) -> Path:
    """Where a version is in ``directory``, if it is."""
    return directory / f"v{version:06d}"


def version_row(published: Published) -> dict[str, Any]:
    """The row of the table ``dictionary``, with how many of its features are of each kind."""
    row: dict[str, Any] = published.tables["dictionary"].to_pylist()[0]
    matches = published.tables.get("feature_match")
    if matches is None:
        return row
    kinds = Counter(matches["kind"].to_pylist())
    counts = {kind: kinds[kind] for kind in KINDS}
    for kind, side in (("split", "from_feature"), ("merged", "to_feature")):
        of_kind = pc.equal(matches["kind"], kind)
        counts[kind] = len(matches[side].filter(of_kind).unique())
    return row | counts


class VersionWriter:
    """Writes versions in a thread of its own, one after the other; whoever brings the next but one waits."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="versions")
        self._pending: dict[Path, Future[Path]] = {}

    def put(self, directory: Path, artefact: Artefact, stream_id: str, origin: Origin, *, keep: int) -> None:
        """Write as :func:`write` does; what goes wrong is logged, and the version is then not kept."""
        before = self._pending.get(directory)
        if before is not None:
            before.exception()  # waits: no more than one version of a stream is held in memory
        self._pending[directory] = future = self._pool.submit(write, directory, artefact, stream_id, origin, keep=keep)
        future.add_done_callback(lambda done: _report(stream_id, artefact.version, done))

    def flush(self) -> None:
        """Wait until everything given so far is written, or has failed."""
        for future in list(self._pending.values()):
            future.exception()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._pool.shutdown(wait=True)


def _report(stream_id: str, version: int, done: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        _log.error("version %d of the dictionary of %s is not kept: %s", version, stream_id, error)


def _write_once(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entry(folder: str, path: Path) -> TarInfo:
    about = path.stat()
    entry = TarInfo(f"{folder}/{path.name}")
    entry.size, entry.mtime, entry.mode = about.st_size, int(about.st_mtime), 0o444
    return entry


def _padded(size: int) -> int:
    return -(-size // BLOCKSIZE) * BLOCKSIZE
