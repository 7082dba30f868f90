"""Labels from a language model behind an OpenAI-compatible endpoint, checked where they can be.

What the model is shown comes from the requests that rules are learned on; a label is scored on the others. It can be
scored if the model names words or classes of tokens; a sentence alone has no score.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.firing import Firing
from hydrophoned.analyse.labels import Labeller, Score
from hydrophoned.api.completions import Completions
from hydrophoned.api.errors import EndpointFailed
from hydrophoned.runtime.label_evidence import Evidence
from hydrophoned.runtime.label_prompts import SYSTEM, Answer, Shown, question, read_answer
from hydrophoned.runtime.settings import LabelsConfig
from hydrophoned.store import StoreReader

TOP: Final = 10
DRAWN: Final = 10
SILENT: Final = 6
REACH: Final = 12
"""Token strings to either side of a row that are shown."""
_FAILURES: Final = 3
"""Answers in a row that fail before a run gives up."""

Keep = Callable[[int, Answer | None, Score | None], Awaitable[None]]


class ModelLabels:
    """Asks about features, ``config.concurrency`` at a time; ``in_thread`` runs what blocks or computes."""

    def __init__(
        self,
        config: LabelsConfig,
        reader: StoreReader,
        evidence: Evidence,
        firing: Firing,
        labeller: Labeller,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._config, self._reader, self._in_thread = config, reader, in_thread
        self._evidence, self._firing, self._labeller = evidence, firing, labeller
        self._random = np.random.default_rng(0)
        self._failures = 0

    async def run(self, features: Sequence[int], keep: Keep) -> None:
        """Ask about each of ``features`` and give ``keep`` what was answered, None where no label could be read.

        Raises TooLittle where no token strings are kept, EndpointFailed when the endpoint refuses or keeps failing.
        """
        if not self._evidence.strings:
            raise TooLittle("no token strings of this stream are kept, so there is nothing to show: attach with text=")
        config, waiting = self._config, iter(features)
        key = os.environ[config.api_key_env] if config.api_key_env else None
        url, model = config.url or "", config.model or ""

        async def worker() -> None:
            for feature in waiting:  # shared: each takes the next one
                await self._ask(completions, feature, keep)

        async with Completions(url, model, key=key, timeout_s=config.timeout_s) as completions:
            tasks = [asyncio.create_task(worker()) for _ in range(config.concurrency)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, completions: Completions, feature: int, keep: Keep) -> None:
        asked = await self._in_thread(partial(self._question, feature))
        answer = None
        if asked is not None:
            try:
                answer = read_answer(await completions.ask(SYSTEM, asked))
                self._failures = 0
            except EndpointFailed as error:
                self._failures += 1
                if not error.passing or self._failures >= _FAILURES:
                    raise
        score = None
        if answer is not None and answer.rule is not None:
            fires = self._firing.of_feature(feature)
            score = await self._in_thread(partial(self._labeller.score, answer.rule, fires))
        await keep(feature, answer, score)

    def _question(self, feature: int) -> str | None:
        """What is asked about ``feature``; None where no row on which it fires has its text kept."""
        rows, learning = self._evidence.rows, self._labeller.learning
        fires = self._firing.of_feature(feature)
        firing = np.flatnonzero(fires & learning)
        value = np.where(rows.index[firing] == feature, rows.value[firing], 0).max(axis=1, initial=0)
        best = firing[np.argsort(-value, kind="stable")]
        _, first = np.unique(rows.request[best], return_index=True)
        top = best[np.sort(first)][:TOP]
        rest = np.setdiff1d(firing, top)
        silent = np.flatnonzero(~fires & learning)
        shown = [
            self._shown(feature, places, count)
            for places, count in ((top, TOP), (self._drawn(rest, DRAWN), DRAWN), (self._drawn(silent, SILENT), SILENT))
        ]
        return question(*shown) if shown[0] else None

    def _drawn(self, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Some more than ``count``, since the text of some may not be kept."""
        return self._random.permutation(places)[: 3 * count]

    def _shown(self, feature: int, places: NDArray[np.int64], count: int) -> list[Shown]:
        """Up to ``count`` of the rows ``places`` whose text is kept."""
        rows = self._evidence.rows
        table = pa.table(
            {
                "request_key": rows.request[places],
                "sequence": rows.sequence[places],
                "position": rows.position[places],
            }
        )
        contexts = self._reader.with_context(table, REACH)
        value = np.where(rows.index[places] == feature, rows.value[places], 0).max(axis=1, initial=0)
        found = [
            Shown(pieces, place, float(one))
            for pieces, place, one in zip(
                contexts["context"].to_pylist(), contexts["context_index"].to_pylist(), value, strict=True
            )
            if pieces is not None
        ]
        return found[:count]
