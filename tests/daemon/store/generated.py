"""Windows of made-up streams, and what must come out of them, computed in numpy without the store."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from hydrophone_schemas import tables

SECOND = 1_000_000
START = 1_767_225_600 * SECOND  # 2026-01-01T00:00:00Z
LENGTH = 10 * SECOND
# each octave from 2^-6 to 2^10 in 8 equal parts
EDGES = np.array([2.0**octave * (1 + part / 8) for octave in range(-6, 10) for part in range(8)] + [2.0**10])
Z = 1.959963984540054


def sketched(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The buckets that values fell into, and how many into each."""
    bucket = np.clip(np.searchsorted(EDGES, values.astype(np.float64), side="right") - 1, 0, 127)
    return np.unique(bucket, return_counts=True)


def sketch_quantile(values: np.ndarray, q: float) -> float | None:
    """What a sketch says of the value of rank floor(q (n - 1)); None where it lies in the first or last bucket."""
    value = np.sort(values)[int(np.floor(q * (len(values) - 1)))]
    bucket = int(sketched(np.array([value]))[0][0])
    if bucket in (0, 127):
        return None
    low, high = EDGES[bucket], EDGES[bucket + 1]
    return float(min(2 * low * high / (low + high), values.max()))


def wilson(fired: int, rows: int) -> tuple[float, float]:
    """The 95% interval of fired / rows: where the rate's z-score is 1.96, solved from the quadratic equation."""
    rate = fired / rows
    roots = np.roots([1 + Z**2 / rows, -(2 * rate + Z**2 / rows), rate**2]).real
    return max(0.0, float(roots.min())), min(1.0, float(roots.max()))


def interval(fired: int, rows: int, requests: int | None) -> dict[str, float | None]:
    """rate_low and rate_high as they are listed."""
    told = rows and not (fired and requests is not None and requests < 2)
    low, high = wilson(fired, rows) if told else (None, None)
    return {"rate_low": low, "rate_high": high}


def as_table(name: str, columns: dict) -> pa.Table:
    """Columns of Python or numpy values as a table of the store; times in us."""
    arrays = []
    for column in tables.TABLES[name]:
        values = columns[column.name]
        array = values if isinstance(values, pa.Array) else pa.array(values)
        if pa.types.is_timestamp(column.type):
            array = array.cast(pa.int64())
        arrays.append(array.cast(column.type))
    return pa.Table.from_arrays(arrays, schema=tables.TABLES[name])


@dataclass
class GeneratedStream:
    """``count`` windows of a stream with F features; every third window of ``silent`` has no scored rows."""

    key: int
    id: str = "toy@1/layers.0"
    features: int = 40
    count: int = 30
    seed: int = 0
    start: int = START
    silent: frozenset = frozenset({3, 17})
    never: int = 5  # features that never fire
    rows: np.ndarray = field(init=False)
    fired: np.ndarray = field(init=False)  # [windows, F]
    sum: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)
    max: np.ndarray = field(init=False)
    requests: np.ndarray = field(init=False)  # -1: not known
    values: dict = field(init=False)  # by (window, feature)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (self.count, self.features)
        self.rows = rng.integers(50, 500, self.count)
        self.rows[[w for w in self.silent if w < self.count]] = 0
        # few distinct counts, so that sorted features are full of ties
        self.fired = rng.integers(0, 3, shape) * (self.rows > 0)[:, None]
        self.fired[:, self.features - self.never :] = 0
        self.sum, self.squares = np.zeros(shape), np.zeros(shape)
        self.max = np.zeros(shape, dtype=np.float32)
        self.requests = np.where(self.fired > 0, rng.integers(1, np.maximum(self.fired, 1) + 1), 0)
        self.requests[(rng.random(shape) < 0.01) & (self.fired > 0)] = -1
        self.values = {}
        for w, f in zip(*self.fired.nonzero(), strict=True):
            values = rng.exponential(2.0, self.fired[w, f]).astype(np.float32)
            self.sum[w, f], self.squares[w, f] = values.sum(dtype=np.float64), np.square(values, dtype=np.float64).sum()
            self.max[w, f] = values.max()
            self.values[w, f] = values
        self.fvu = rng.random(self.count)
        self.l0 = rng.random(self.count) * 32

    @property
    def starts(self) -> np.ndarray:
        return self.start + LENGTH * np.arange(self.count)

    @property
    def end(self) -> int:
        return int(self.starts[-1] + LENGTH)

    def stream_row(self) -> pa.Table:
        model, _, rest = self.id.partition("@")
        version, _, site = rest.partition("/")
        row = {
            "stream_key": [self.key], "id": [self.id], "model": [model], "version": [version], "site": [site],
            "fingerprint": ["f" * 16], "width": [8], "dtype": ["float32"], "created": [self.start],
        }  # fmt: skip
        return as_table("stream", row)

    def window(self, w: int) -> dict[str, pa.Table]:
        """The tables of window ``w``."""
        start, end = int(self.starts[w]), int(self.starts[w] + LENGTH)
        (active,) = self.fired[w].nonzero()
        scored = int(self.rows[w])
        unknown = scored == 0
        stream = {
            "stream_key": [self.key], "window_start": [start], "window_end": [end], "rows": [scored + 7],
            "rows_sink": [4], "rows_quarantined": [2], "rows_late": [1], "rows_scored": [scored],
            "rows_learned": [scored], "requests": [3],
            "fvu": pa.array([None if unknown else self.fvu[w]], pa.float64()),
            "l0": pa.array([None if unknown else self.l0[w]], pa.float64()), "dead_fraction": [0.25],
            "mean_norm": pa.array([None if unknown else 3.0 + w], pa.float64()), "median_norm": [2.5 + w],
            "features_fired": pa.array([None if unknown else len(active)], pa.int32()), "dictionary_version": [1],
        }  # fmt: skip
        n = len(active)
        sketches = [sketched(self.values[w, f]) for f in active]
        requests = self.requests[w, active]
        feature = {
            "stream_key": np.full(n, self.key), "window_start": np.full(n, start), "window_end": np.full(n, end),
            "feature": active, "fired": self.fired[w, active], "requests": pa.array(requests, mask=requests < 0),
            "sum": self.sum[w, active], "sum_squares": self.squares[w, active], "max": self.max[w, active],
            "buckets": [bucket for bucket, _ in sketches], "counts": [count for _, count in sketches],
            "dictionary_version": np.full(n, 1),
        }  # fmt: skip
        return {
            "stream_window": as_table("stream_window", stream),
            "feature_window": as_table("feature_window", feature),
            **self.split(w),
        }

    def decode(self, w: int) -> tuple[int, np.ndarray]:
        """Rows of the phase decode in window ``w``, and on how many of them each feature fired: about a third."""
        return int(self.rows[w] // 3), self.fired[w] // 2

    def split(self, w: int) -> dict[str, pa.Table]:
        """The tables of window ``w`` by phase."""
        start, end = int(self.starts[w]), int(self.starts[w] + LENGTH)
        rows, fired = self.decode(w)
        cells = [("decode", rows, fired), ("prompt", int(self.rows[w]) - rows, self.fired[w] - fired)]
        cells = [cell for cell in cells if cell[1]]
        streams = {
            "stream_key": [self.key] * len(cells), "window_start": [start] * len(cells),
            "window_end": [end] * len(cells), "attribute": ["phase"] * len(cells),
            "value": [value for value, _, _ in cells], "rows_scored": [n for _, n, _ in cells],
            "requests": [2] * len(cells),
        }  # fmt: skip
        active = [(value, f, int(n[f])) for value, _, n in cells for f in n.nonzero()[0]]
        count = len(active)
        features = {
            "stream_key": [self.key] * count, "window_start": [start] * count, "window_end": [end] * count,
            "attribute": ["phase"] * count, "value": [value for value, _, _ in active],
            "feature": [f for _, f, _ in active], "fired": [n for _, _, n in active],
            "sum": [float(n) * (f + 1) for _, f, n in active], "dictionary_version": [1] * count,
        }  # fmt: skip
        return {
            "stream_split": as_table("stream_split", streams),
            "feature_split": as_table("feature_split", features),
        }

    def expected(self, since: int, until: int) -> list[dict]:
        """Every feature's figures over the windows that start in [since, until), by index; None is unknown."""
        inside = (self.starts >= since) & (self.starts < until)
        rows = int(self.rows[inside].sum())
        listed = []
        for f in range(self.features):
            fired = int(self.fired[inside, f].sum())
            mean = std = largest = last = None
            of_windows = self.requests[inside, f]
            requests = None if (of_windows < 0).any() else int(of_windows.sum())
            quantiles = dict.fromkeys(("q50", "q90", "q99"))
            if fired >= 5 and (requests is None or requests >= 2):
                values = np.concatenate([self.values[w, f] for w in inside.nonzero()[0] if (w, f) in self.values])
                quantiles = {name: sketch_quantile(values, int(name[1:]) / 100) for name in quantiles}
            if fired:
                mean = float(self.sum[inside, f].sum() / fired)
                std = float(np.sqrt(max(self.squares[inside, f].sum() / fired - mean**2, 0)))
                largest = float(self.max[inside, f].max())
                last = int(self.starts[inside][self.fired[inside, f] > 0][-1] + LENGTH)
            listed.append(
                {"index": f, "fired": fired if rows else None, "rows": rows, "rate": fired / rows if rows else None,
                 **interval(fired, rows, requests), "requests": requests if rows else None,
                 "mean": mean, "std": std, "max": largest, "last_fired": last, **quantiles}
            )  # fmt: skip
        return listed

    def fill(self, store) -> None:
        """Write everything, window by window."""
        store.write({"stream": self.stream_row()})
        for w in range(self.count):
            store.write(self.window(w))


def ordered(listed: list[dict], sort: str, *, descending: bool) -> list[int]:
    """Indices of features in the order that the store promises: unknown last, ties by index."""
    known = [item for item in listed if item[sort] is not None]
    unknown = [item for item in listed if item[sort] is None]
    known.sort(key=lambda item: item["index"])
    known.sort(key=lambda item: item[sort], reverse=descending)  # stable both ways: ties stay in order of index
    return [item["index"] for item in known + sorted(unknown, key=lambda item: item["index"])]
