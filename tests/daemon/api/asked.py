"""A daemon that has learned planted features from requests of two kinds, for questions about them."""

import asyncio

import numpy as np
from hydrophone_schemas.names import StreamId
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon

WIDTH, ATOMS, K = 48, 40, 4
STREAM = "toy@1/layers.0"
PIECES = [f" word{number}" for number in range(ATOMS)]
WARM, REQUESTS, LENGTH = 300, 160, 40
SECOND = 1_000_000
LEARN = {
    "features": 64, "k": K, "batch_rows": 128, "buffer_rows": 1024, "warmup_rows": 512, "window_seconds": 5,
    "request_features_per_window": 6,
}  # fmt: skip


class Asked:
    """A closed loop of one daemon: ``atoms`` [ATOMS, WIDTH] are the directions that rows are sums of.

    A row's token is the atom that it has most of. Requests ``r0``, ``r1``, ... are of the kinds code and prose in turn;
    those of code have atom 3 four times as often. Those with much of atom 5 have the outcome ``bad``: true.
    """

    def __init__(self, folder) -> None:
        self.config = load_config(None, {"daemon": {"data_dir": str(folder), "nice": 0}, "learn": LEARN})
        self.rng = np.random.default_rng(0)
        self.atoms = np.linalg.qr(self.rng.normal(size=(WIDTH, WIDTH)))[0][:ATOMS].astype(np.float32)
        self.start = now_us() - 1200 * SECOND
        self.bad, self.share = {}, {}
        asyncio.run(self._fill())

    def close(self) -> None:
        asyncio.run(self.daemon.close())

    async def _fill(self) -> None:
        self.daemon = Daemon(self.config)
        self.daemon.restore()
        spec = StreamSpec(StreamId.parse(STREAM), "f" * 16, WIDTH, "float32")
        self.key = self.daemon.open_stream(spec, "p")
        for number in range(WARM):
            self._request(f"warm{number}", "warm", number, text=False)
        await self.daemon.flush()
        for number in range(REQUESTS):
            kind = "code" if number % 2 == 0 else "prose"
            five = self._request(f"r{number}", kind, WARM + number, text=True)
            self.bad[f"r{number}"] = five > 4
            if number < REQUESTS - 10:  # of the last ten nothing was told
                self.daemon.put_outcome(f"r{number}", "toy", {"bad": five > 4}, now_us(), "test")
        await self.daemon.flush()
        self.backend = DaemonBackend(self.daemon, None)

    def _request(self, name: str, kind: str, number: int, *, text: bool) -> int:
        begun = self.start + number * 2 * SECOND
        key = self.daemon.open_request(RequestSpec(name, "toy", "1", "p", begun, 1.0, {"kind": kind, "number": number}))
        rate = np.full(ATOMS, 0.05)
        rate[3] *= 4 if kind == "code" else 1
        rate[5] *= 4 if self.rng.random() < 0.4 else 0.5
        weight = (1 + self.rng.random((LENGTH, ATOMS))) * (self.rng.random((LENGTH, ATOMS)) < rate)
        token = weight.argmax(1).astype(np.int32)
        weight[np.arange(LENGTH), token] += 1.0
        x = (weight @ self.atoms + 0.02 * self.rng.normal(size=(LENGTH, WIDTH))).astype(np.float32)
        column = np.arange(LENGTH, dtype=np.int32)
        zeros = np.zeros(LENGTH)
        self.daemon.put_rows(
            self.key,
            Rows(x, "float32", np.full(LENGTH, key, np.int64), zeros.astype(np.uint16), column, zeros.astype(np.uint8),
                 token, np.full(LENGTH, begun, np.int64)),
        )  # fmt: skip
        if text:
            self.daemon.put_tokens(key, 0, 0, [PIECES[one] for one in token[:10]])
            for at in range(10, LENGTH):
                self.daemon.put_tokens(key, 0, at, [PIECES[token[at]]])
        return int((weight[:, 5] > 0).sum())
