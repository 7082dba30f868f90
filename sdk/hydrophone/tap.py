"""``attach``: listen to the chosen sites of a model, and the :class:`Tap` that holds on to them."""

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from hydrophone_schemas.errors import SchemaError
from hydrophone_schemas.names import StreamId, check_name

from hydrophone.embedded import Located, locate
from hydrophone.encode import Text, read_text
from hydrophone.errors import InvalidOption
from hydrophone.fingerprint import fingerprint
from hydrophone.producer import Producer, release, shared
from hydrophone.requests import RequestBook, Scope, read_attributes, read_ids
from hydrophone.sampling import Sampler
from hydrophone.sites import Site, middle_block, resolve
from hydrophone.streams import Stream

FLUSH_TIMEOUT: Final = 10.0
MIN_BUFFER_BYTES: Final = 1 << 20
_FORWARDS_BEFORE_WARNING: Final = 3


class Status(NamedTuple):
    """What a tap has done so far; ``streams`` holds a report for each of its sites."""

    connected: bool
    rate: float
    """Sample rate in force, in 0..1."""
    forwards: int
    """Forward passes of the model that have ended."""
    buffer_bytes: int
    dropped: dict[str, int]
    """Rows dropped, by reason, over all sites."""
    caught: dict[str, int]
    """Exceptions caught inside hooks and the sending thread, by type."""
    counters: dict[str, int]
    streams: list[dict[str, Any]]


class Tap:
    """Listens to sites of one model until :meth:`detach`. Made by :func:`attach`; also a context manager.

    Everything but the setting up is safe: no method raises for anything a daemon does or fails to do.
    """

    def __init__(
        self, located: Located, producer: Producer, book: RequestBook, sites: Sequence[tuple[Site, Stream]]
    ) -> None:
        self._located = located
        self._producer = producer
        self._book = book
        self._sites = list(sites)
        self._hooks: Any = None
        self._attached = True
        self._began = [(stream.fires, stream.forwards) for _, stream in sites]
        self._silent: set[str] = set()

    @property
    def model(self) -> str:
        """Name and version of the model, ``name@version``."""
        return f"{self._book.model}@{self._book.version}"

    @property
    def streams(self) -> list[str]:
        """Ids of the streams, one per site, in the model's order."""
        return [stream.name for _, stream in self._sites]

    @property
    def url(self) -> str | None:
        """URL of the daemon's API, once the daemon has told it."""
        http = self._producer.session.welcome.get("http") or self._located.http
        return http if http is None or "://" in http else f"http://{http}"

    @property
    def rate(self) -> float:
        """Sample rate in force, in 0..1: lower than asked for while the buffer is under pressure."""
        return self._book.sampler.rate

    def request(self, id: Any = None, **attributes: Any) -> AbstractContextManager[Scope]:  # noqa: A002  the field's name
        """Group the rows of the forward passes inside ``with`` under one request.

        ``id`` is a string, or a list with one for each batch element (or for each group of as many sequences as divide
        the batch evenly). ``attributes`` are text, numbers and booleans. Nested scopes: the inner one counts.
        Raises :class:`InvalidOption` if ``id`` is neither.
        """
        return self._book.scope(id, attributes)

    def outcome(self, request: Any, **labels: Any) -> None:
        """Tell what became of a request: its id (or scope) and labels such as ``hallucinated=True``.

        Raises :class:`InvalidOption` if ``request`` is not an id.
        """
        ids = request.ids if isinstance(request, Scope) else read_ids(request)
        if not ids:
            raise InvalidOption("an outcome needs the id of its request")
        for name in ids:
            self._producer.outcome(
                {
                    "id": name,
                    "model": self._book.model,
                    "labels": read_attributes(labels),
                    "time": time.time_ns() // 1000,
                    "source": "sdk",
                }
            )

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Send what was captured so far and wait until the daemon has processed it; False after ``timeout`` seconds."""
        return self._producer.flush(timeout)

    def detach(self, timeout: float = FLUSH_TIMEOUT) -> None:
        """Take the hooks away, and send what is left within ``timeout`` seconds. Does nothing the second time."""
        if not self._attached:
            return
        self._attached = False
        self._hooks.remove()
        self._report_silence()
        if not self._producer.session.failing:
            self._producer.flush(timeout)
        if self in self._producer.watchers:
            self._producer.watchers.remove(self)
        release(self._producer, timeout)

    def status(self) -> Status:
        """Counts so far, of this tap's sites."""
        reports = [stream.report() for _, stream in self._sites]
        dropped: dict[str, int] = {}
        for report in reports:
            for reason, rows in report["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + rows
        producer = self._producer
        return Status(
            connected=producer.connected,
            rate=self.rate,
            forwards=max((report["forwards"] for report in reports), default=0),
            buffer_bytes=producer.buffer.nbytes,
            dropped=dropped,
            caught=dict(producer.faults.counts),
            counters={**producer.session.counters, **producer.counters},
            streams=reports,
        )

    def tick(self, fill: float, dropped: int) -> None:
        """Once a second, by the sending thread: adapt the sample rate, and warn of hooks that do not fire."""
        self._book.sampler.tick(fill=fill, dropped=dropped)
        self._report_silence()

    def _report_silence(self) -> None:
        """Warn once of each site whose hook fired less often than its model ran, as compiled models can drop hooks."""
        for (site, stream), (fires, forwards) in zip(self._sites, self._began, strict=True):
            ran, fired = stream.forwards - forwards, stream.fires - fires
            if ran >= _FORWARDS_BEFORE_WARNING and fired < ran and stream.name not in self._silent:
                self._silent.add(stream.name)
                self._producer.faults.warn(
                    f"silent {stream.name}",
                    "the hook at %s fired %d times in %d forward passes: rows are missing. A model that was compiled "
                    "and called before attach drops hooks: attach first, or call torch.compiler.reset()",
                    site.name,
                    fired,
                    ran,
                )

    def completed(self) -> None:
        """Count a forward pass of the model; called by its hooks."""
        for _, stream in self._sites:
            stream.completed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    model: Any,
    sites: Sequence[str] | str | None = None,
    *,
    name: str | None = None,
    version: str | None = None,
    daemon: str | None = None,
    sample: float = 1.0,
    text: Text = None,
    tokenizer: Any = None,
    dtype: str | None = None,
    buffer_bytes: int = 64 << 20,
    data_dir: Path | str | None = None,
) -> Tap:
    """Listen to ``sites`` of ``model``, any ``torch.nn.Module``, until the returned tap is detached.

    ``sites``: module paths with an optional part, ``path[:input|:output][[index]]``, or globs in which ``*`` does not
    cross a dot and ``**`` does; without them the middle block of the model. Rows of an output of shape [B, T, d] are
    those of B sequences; [B, d], or [B * T, d]; [B, C, H, W] gives one row of width C for each place; [d] one row.
    ``name``: default the class name in lower case. ``version``: default the first 8 digits of the fingerprint.
    ``daemon``: an address (``/path``, ``unix:/path``, ``host:port``), ``"inline"`` for a daemon in a thread of this
    process, or None for the one that listens on the default socket, else a child that ends with this process.
    ``sample``: share of requests that are taken, in 0..1. ``dtype``: ``float32``, ``float16`` or ``bfloat16``, default
    that of the rows. ``text``: None sends no strings; ``"tokens"`` sends the tokenizer's own, ``"text"`` decoded ones,
    a callable gets each decoded string and returns what is sent. ``buffer_bytes``: most memory held for rows that
    wait, shared by all taps on the same daemon. ``data_dir``: where a child or inline daemon keeps its data.

    Raises :class:`SiteNotFound` (with near matches), :class:`InvalidOption`, :class:`CannotHook`,
    :class:`DaemonNotFound` or :class:`DaemonFailed`. Afterwards nothing that the daemon does raises.
    """
    from hydrophone.capture import Hooks, Watch, unwrap  # noqa: PLC0415  the SDK itself must import without torch

    if not 0 <= sample <= 1:
        raise InvalidOption(f"sample={sample!r} is not in 0..1")
    if buffer_bytes < MIN_BUFFER_BYTES:
        raise InvalidOption(f"buffer_bytes={buffer_bytes!r} is less than {MIN_BUFFER_BYTES}")
    inner = unwrap(model)
    wanted = [sites] if isinstance(sites, str) else [middle_block(inner)] if sites is None else sites
    found = resolve(inner, wanted)
    if not found:
        raise InvalidOption("sites=[] leaves nothing to listen to")
    pieces = read_text(text, tokenizer)
    digest = fingerprint(inner)
    try:
        name = check_name("model", name if name is not None else type(inner).__name__.lower().lstrip("_"))
        version = check_name("version", version if version is not None else digest[:8])
    except SchemaError as error:
        raise InvalidOption(str(error)) from None
    located = locate(daemon, None if data_dir is None else Path(data_dir))
    producer = shared(located.address, buffer_bytes)
    try:
        sampler = Sampler(sample, random.Random())  # noqa: S311  not for secrets
        book = RequestBook(name, version, sampler, producer.numbering)
        pairs = [(site, producer.stream(StreamId(name, version, site.name), digest, pieces)) for site in found]
        tap = Tap(located, producer, book, pairs)
        watch = Watch(producer.faults.failed, tap.completed)
        tap._hooks = Hooks(model, pairs, book, producer.put, watch, dtype=dtype)  # noqa: SLF001  made for each other
    except BaseException:
        release(producer, 0.0)
        raise
    producer.watchers.append(tap)
    producer.start()
    return tap
