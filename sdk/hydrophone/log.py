"""``log``: rows that do not come from a torch module, such as NumPy or JAX arrays or embeddings from a service."""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from hydrophone_schemas.activations import Phase
from hydrophone_schemas.errors import SchemaError
from hydrophone_schemas.names import StreamId
from numpy.typing import NDArray

from hydrophone.embedded import locate
from hydrophone.errors import InvalidArray, InvalidOption
from hydrophone.forward import Columns, Forward
from hydrophone.producer import Producer, shared
from hydrophone.requests import Request, read_attributes, read_ids
from hydrophone.streams import Stream

_REMEMBERED: Final = 4096
"""Requests by id, so that a later call with the same id adds to the same request."""


class _Logged:
    """Rows given to ``log``, copied."""

    def __init__(self, stream: Stream, rows: NDArray[Any], dtype: str, columns: Columns) -> None:
        self.stream = stream
        self.forward: Forward | None = None
        self.width = rows.shape[1]
        self.dtype = dtype
        self.rows = len(rows)
        self.nbytes = rows.nbytes + 512
        self.taken = time.monotonic()
        self._rows = rows
        self._columns = columns

    def columns(self) -> Columns:
        """What describes the rows."""
        return self._columns

    def values(self) -> NDArray[Any]:
        """The rows [n, d]."""
        return self._rows


class _Known:
    """A request given by id, and the position after its last row in each stream."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.next: dict[str, int] = {}


def log(
    stream: str,
    array: Any,
    request: Any = None,
    positions: Sequence[int] | NDArray[Any] | None = None,
    *,
    daemon: str | None = None,
    **attributes: Any,
) -> None:
    """Send the rows of ``array``, [n, d] or [d], as rows of ``stream``. The array is copied.

    ``stream`` is ``name``, ``name@version`` or ``name@version/site``; version ``1`` and site ``rows`` where left out.
    ``array`` is a NumPy array, or anything with ``__dlpack__`` or ``__array__``, of floats; float64 is sent as float32.
    ``request`` is an id, or a list with one for each row; without it the call is one request. ``positions`` [n] are
    integers from 0; by default they go on from the request's last row. ``daemon`` is as for :func:`hydrophone.attach`.

    Raises :class:`InvalidArray` or :class:`InvalidOption`, and what ``attach`` raises if no daemon can be had.
    """
    stream_id = _stream_id(stream)
    rows, dtype = _rows(array)
    ids = read_ids(request)
    if isinstance(request, (list, tuple)) and len(request) != len(rows):
        raise InvalidOption(f"request has {len(request)} ids for {len(rows)} rows")
    places = _positions(positions, len(rows))
    producer = _producer(daemon)
    target = producer.stream(stream_id, f"log:{stream_id.model}@{stream_id.version}")
    columns = _columns(producer, stream_id, ids, places=places, count=len(rows), attributes=read_attributes(attributes))
    target.fire(len(rows), taken=True)
    target.completed()
    producer.put(_Logged(target, rows, dtype, columns))


def flush(timeout: float = 10.0) -> bool:
    """Send what :func:`log` was given so far and wait until it has been processed; False after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    with _LOCK:
        producers = list(_PRODUCERS.values())
    return all(producer.flush(max(0.0, deadline - time.monotonic())) for producer in producers)


def _producer(daemon: str | None) -> Producer:
    with _LOCK:
        producer = _PRODUCERS.get(daemon)
        if producer is None:
            producer = _PRODUCERS[daemon] = shared(locate(daemon).address, 64 << 20)
        return producer


def _stream_id(text: str) -> StreamId:
    head, slash, site = text.partition("/")
    head = head if "@" in head else f"{head}@1"
    try:
        return StreamId.parse(f"{head}/{site if slash else 'rows'}")
    except SchemaError as error:
        raise InvalidOption(str(error)) from None


def _rows(array: Any) -> tuple[NDArray[Any], str]:
    """A copy of the rows [n, d] in the form that is sent, and its dtype's name."""
    rows = _host_array(array)
    bfloat = rows.dtype.name == "bfloat16"  # ml_dtypes, as JAX uses it, or our own view of torch's
    if bfloat:
        rows = rows.view(np.uint16)
    elif rows.dtype.kind != "f":
        raise InvalidArray(f"array has dtype {rows.dtype}; rows are floating point numbers")
    elif rows.dtype.itemsize not in (2, 4):
        rows = rows.astype(np.float32)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or not rows.size:
        raise InvalidArray(f"array has shape {rows.shape}; expected [n, d] or [d], not empty")
    return np.array(rows, order="C", copy=True), "bfloat16" if bfloat else rows.dtype.name


def _host_array(array: Any) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        if array.dtype is torch.bfloat16:
            array = array.float()  # NumPy has no bfloat16; every value is a float32 too
        return np.asarray(array.numpy())
    try:
        if not hasattr(array, "__array__") and hasattr(array, "__dlpack__"):
            return np.from_dlpack(array)
        return np.asarray(array)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise InvalidArray(f"{type(array).__name__} cannot be read as an array: {error}") from error


def _positions(positions: Any, count: int) -> NDArray[np.int32] | None:
    if positions is None:
        return None
    places = np.asarray(positions)
    if places.shape != (count,) or places.dtype.kind not in "iu" or (count and places.min() < 0):
        raise InvalidOption(
            f"positions of shape {places.shape} and dtype {places.dtype} are not {count} integers from 0"
        )
    return places.astype(np.int32)


def _columns(
    producer: Producer,
    stream_id: StreamId,
    ids: list[str] | None,
    *,
    places: NDArray[np.int32] | None,
    count: int,
    attributes: dict[str, Any],
) -> Columns:
    share = count if ids is None or len(ids) == 1 else 1
    owners: list[Request] = []
    starts: list[int] = []
    for name in ids if ids is not None else (None,):
        known = _known(producer, stream_id, name, attributes)
        with _LOCK:
            starts.append(known.next.get(stream_id.site, 0))
            end = starts[-1] + share if places is None else int(places.max(initial=-1)) + 1
            known.next[stream_id.site] = max(starts[-1], end)
        owners.append(known.request)
    if places is None:
        places = np.concatenate([np.arange(start, start + share, dtype=np.int32) for start in starts])
    return Columns(
        None,
        np.repeat(np.array([owner.number for owner in owners], np.uint64), share),
        np.zeros(count, np.uint16),
        places,
        np.full(count, Phase.PROMPT, np.uint8),
        None,
        np.full(count, time.time_ns() // 1000, np.int64),
        tuple(dict.fromkeys(owners)),
    )


def _known(producer: Producer, stream_id: StreamId, name: str | None, attributes: dict[str, Any]) -> _Known:
    key = (producer, stream_id.model, stream_id.version, name)
    with _LOCK:
        known = _REQUESTS.get(key) if name is not None else None
        if known is None:
            number = producer.numbering.next()
            request_id = producer.numbering.name(number) if name is None else name
            known = _Known(_request(number, request_id, stream_id, attributes))
            if name is not None:
                _REQUESTS[key] = known
                if len(_REQUESTS) > _REMEMBERED:
                    _REQUESTS.popitem(last=False)
        return known


def _request(number: int, request_id: str, stream_id: StreamId, attributes: dict[str, Any]) -> Request:
    return Request(
        number, request_id, model=stream_id.model, version=stream_id.version, sample=1.0, attributes=attributes
    )


_PRODUCERS: dict[str | None, Producer] = {}
_REQUESTS: OrderedDict[tuple[Producer, str, str, str | None], _Known] = OrderedDict()
_LOCK = threading.RLock()
