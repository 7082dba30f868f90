"""Loss recovered: what a model loses when a dictionary's rebuilt rows take the place of its own."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from hydrophone_schemas.errors import SchemaError
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.places import DEFAULT_HTTP
from numpy.typing import NDArray

from hydrophone.errors import DaemonUnreachable, DictionaryChanged, InvalidOption
from hydrophone.rest_client import RestClient

_MOST_ROWS: Final = 8192
_MOST_BYTES: Final = 15 << 20
"""Of a body: the daemon takes 16 MiB."""
_ARROW: Final = "application/vnd.apache.arrow.stream"
_VERSION: Final = b"hydrophone.dictionary_version"


class Rebuilt(NamedTuple):
    """n rows rebuilt: ``row`` float32 [n, d]; ``sink`` and ``finite`` are bool [n]."""

    row: NDArray[np.float32]
    sink: NDArray[np.bool_]
    finite: NDArray[np.bool_]


class LossRecovered(NamedTuple):
    """How much of a model's loss the dictionary of one of its sites keeps.

    Losses are means over ``tokens`` (in nats, unless another loss was given). The loss recovered is
    (ablated - dictionary) / (ablated - clean): 1 where rebuilt rows do as well as the model's own, 0 where they do no
    better than ablated ones; None where ablating them costs nothing, so that there is nothing to recover.
    """

    stream: str
    site: str
    dictionary_version: int | None
    loss_recovered: float | None
    """Against rows that are all their mean."""
    loss_recovered_zero: float | None
    """Against rows that are all 0, which is the easier comparison."""
    ce_clean: float
    ce_dictionary: float
    ce_mean: float
    ce_zero: float
    tokens: int
    """Tokens that were scored."""
    sequences: int
    rows: int
    """Rows that were replaced."""
    rows_sink: int
    """Rows with a norm beyond the stream's sink threshold, which stay as they are in every pass."""
    rows_quarantined: int
    """Rows with NaN or Inf, which stay as they are in every pass."""


def loss_recovered(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    stream: str,
    site: str | None = None,
    url: str | None = None,
    loss: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]] | None = None,
) -> LossRecovered:
    """Run ``model`` over ``batches`` with its own rows at a site, and with those that a stream's dictionary rebuilds.

    ``model`` is a ``torch.nn.Module``; each batch a mapping of its arguments, on its device, such as a tokenizer's
    ``input_ids`` and ``attention_mask``. ``stream`` is the id ``name@version/site`` of the stream that has the
    dictionary; ``site`` the place in this model, default that in the stream's id; ``url`` the daemon's API, such as
    ``tap.url``, default ``$HYDROPHONE_URL`` or ``http://127.0.0.1:8417``. ``loss`` takes output and batch and gives the
    sum of the losses and their number, default the cross-entropy of each next token.

    Each batch runs four times: as it is, rebuilt, and with every row replaced by their mean or by 0. Sinks, rows that
    are not finite and padding stay as they are in all four. It happens in evaluation mode without gradients; taps do
    not listen to it, and passes of other threads go on undisturbed. Measure on text that the stream has not learned.

    Raises :class:`InvalidOption`, :class:`SiteNotFound`, :class:`CannotHook`, :class:`DaemonUnreachable`,
    :class:`RequestRefused` (no such stream, or no dictionary yet), and :class:`DictionaryChanged` when mean and scale
    of the stream were replaced meanwhile. Learning goes on meanwhile unless rows stop: what is measured is the
    dictionary as it was at each batch.
    """
    from hydrophone.replay import measure  # noqa: PLC0415  the SDK itself must import without torch

    try:
        default = StreamId.parse(stream).site
    except SchemaError as error:
        raise InvalidOption(f"stream={stream!r}: {error}") from None
    site = default if site is None else site
    dictionary = _Dictionary(RestClient(url or os.environ.get("HYDROPHONE_URL") or DEFAULT_HTTP), stream)
    found = measure(model, batches, site, dictionary.rebuild, loss)
    clean, rebuilt, by_mean, by_zero = (
        tally.mean for tally in (found.clean, found.rebuilt, found.by_mean, found.by_zero)
    )
    return LossRecovered(
        stream=stream,
        site=site,
        dictionary_version=dictionary.version,
        loss_recovered=_recovered(by_mean, rebuilt, clean),
        loss_recovered_zero=_recovered(by_zero, rebuilt, clean),
        ce_clean=clean,
        ce_dictionary=rebuilt,
        ce_mean=by_mean,
        ce_zero=by_zero,
        tokens=round(found.clean.count),
        sequences=found.sequences,
        rows=found.rows,
        rows_sink=found.rows_sink,
        rows_quarantined=found.rows_quarantined,
    )


class _Dictionary:
    """The dictionary of a stream as its daemon has it; ``version`` is that of the first answer."""

    def __init__(self, client: RestClient, stream: str) -> None:
        self._client, self._stream = client, stream
        self.version: int | None = None

    def rebuild(self, x: NDArray[np.float32]) -> Rebuilt:
        """Rows x [n, d] rebuilt; raises DaemonUnreachable, RequestRefused and DictionaryChanged."""
        n, d = x.shape
        rebuilt = Rebuilt(np.empty_like(x), np.empty(n, np.bool_), np.empty(n, np.bool_))
        size = max(1, min(_MOST_ROWS, _MOST_BYTES // (4 * d)))
        for start in range(0, n, size):
            part = slice(start, start + size)
            table = self._ask(x[part])
            rebuilt.row[part] = table["row"].combine_chunks().flatten().to_numpy().reshape(-1, d)
            rebuilt.sink[part], rebuilt.finite[part] = table["sink"].to_numpy(), table["finite"].to_numpy()
        return rebuilt

    def _ask(self, x: NDArray[np.float32]) -> pa.Table:
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
        batch = pa.record_batch([column], names=["x"])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        body = self._client.post_bytes(f"/v1/streams/{self._stream}/reconstruct", sink.getvalue().to_pybytes(), _ARROW)
        try:
            with pa.ipc.open_stream(body) as reader:
                table = reader.read_all()
            version = int(table.schema.metadata[_VERSION])
        except (pa.ArrowException, KeyError, TypeError) as error:
            raise DaemonUnreachable(
                f"what answers at {self._client.url} sends no rebuilt rows ({error!r}). Give the daemon's address: url="
            ) from None
        if self.version not in (None, version):
            raise DictionaryChanged(
                f"the dictionary of {self._stream} went from version {self.version} to {version} while its loss "
                "recovered was measured: measure again, when the stream's rows have settled"
            )
        self.version = version
        return table


def _recovered(ablated: float, rebuilt: float, clean: float) -> float | None:
    if not ablated > clean:
        return None
    share = (ablated - rebuilt) / (ablated - clean)
    return share if math.isfinite(share) else None
