"""Versions of a dictionary: when the next one is published, how far it has moved, and what became of its features.

A dictionary learns in place; a version is what is told of it. Between two versions features are compared on the probe
rows: a fixed sample of the stream, drawn from the reservoir when the first version is published. Once the stream has
doubled since it was drawn, it is drawn anew at a publication, after that version was compared on the old one.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.buffers import Reservoir
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.identity import KINDS, FeatureIds, Match, Snapshot, cosines, match
from hydrophoned.learn.placement import MAIN_MEMORY
from hydrophoned.learn.record_batch import record_batch
from hydrophoned.learn.sae import files
from hydrophoned.learn.trainer import Trainer

FIRST, MOVED, TRANSFORM, REQUESTED, RESUMED = "first", "moved", "transform", "requested", "resumed"
"""Reasons to publish."""
_DECODER: Final = 0.25
"""The decoder has moved enough at this share of ``publish_moved``: it moves less than codes change."""
_PATIENCE: Final = 2
"""Features set anew since wait at most as many times ``publish_rows`` for their ids."""
_SOONEST: Final = 8192
"""Learned rows before the first look; then one follows each time they have doubled, up to every ``publish_rows``."""
_DOUBLED: Final = 2
_COUNTERS: Final = ("version", "probe", "_probe_seen", "_rows_published", "_rows_checked")
_TENSORS: Final = ("_probe_rows", "_index", "_value", "_W_dec", "_alive", "_revivals")


class Movement(NamedTuple):
    """How far a dictionary has moved since its last version; None where there is nothing to tell it from.

    ``decoder`` is the mean of 1 - cosine between the decoder rows at an index, over living features that were not set
    anew; ``codes`` the share of (row, feature) pairs of the probe rows that were active and are no longer so.
    """

    decoder: float | None
    codes: float | None


class Artefact(NamedTuple):
    """A version as it is kept: :class:`~hydrophoned.learn.sae.files.Packed`, whose notes the runtime completes."""

    version: int
    tensors: bytes
    document: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the weights."""
        return str(self.document["tensors_sha256"])


class Published(NamedTuple):
    """A new version: rows of the store's tables by name, what to keep, and the indices int64 [n] with a new id."""

    version: int
    tables: dict[str, pa.RecordBatch]
    artefact: Artefact | None
    begun: NDArray[np.int64]


class Publication:
    """Publishes versions of the dictionary that ``trainer`` learns, and keeps ``identity`` in step with them.

    ``version`` is the last one, 0 before the first, and ``digest`` that of its weights, None where they were not
    wanted; ``probe`` numbers the samples of probe rows. All state stays in main memory.
    """

    def __init__(
        self, stream_key: int, config: LearnerConfig, trainer: Trainer, reservoir: Reservoir, identity: FeatureIds
    ) -> None:
        self.stream_key, self.config = stream_key, config
        self.version = self.probe = 0
        self.digest: str | None = None
        self._trainer, self._reservoir, self._identity = trainer, reservoir, identity
        self._generator = torch.Generator().manual_seed(config.seed + 2)
        self._least = 0
        self._told = torch.zeros(0, dtype=torch.int64)
        self._probe_seen = self._rows_published = self._rows_checked = 0
        self._probe_rows = torch.zeros(0, trainer.dictionary.width)
        self._index, self._value = torch.zeros(0, 1, dtype=torch.int32), torch.zeros(0, 1)
        self._W_dec = torch.zeros(0, trainer.dictionary.width, dtype=torch.float16)
        self._alive, self._revivals = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)

    def due(self) -> str | None:
        """Why a version is to be published now, None where it is not.

        Asked after every step. It looks once in ``publish_rows`` learned rows, more often in the beginning, whether
        ``publish_moved`` of the codes have changed, or a quarter of that of the decoder.
        """
        if not self._trainer.version:
            return None
        if not self.version:
            return FIRST
        if len(self._told):
            return RESUMED
        rows, least = self._trainer.rows_learned, self.config.publish_moved
        if not least or rows - self._rows_checked < min(self.config.publish_rows, max(_SOONEST, self._rows_checked)):
            return None
        self._rows_checked = rows
        waiting = self._begun() & ~self._trainer.dictionary.dead.cpu()
        if rows - self._rows_published >= _PATIENCE * self.config.publish_rows and bool(waiting.any()):
            return MOVED
        moved = self.movement()
        enough = (moved.codes or 0) >= least or (moved.decoder or 0) >= _DECODER * least
        return MOVED if enough else None

    def movement(self) -> Movement:
        """How far the dictionary has moved since the last version."""
        return self._movement(self._codes()[0])

    def last(self) -> Snapshot:
        """The last version, as the next one is compared with it."""
        return Snapshot(self._W_dec, Codes(self._index, self._value), self._alive)

    def now(self) -> Snapshot:
        """The dictionary as it is, which learns on."""
        return self._snapshot(self._codes()[0])

    def publish(self, reason: str, time: int, *, pack: bool = False) -> Published:
        """Publish the dictionary as it is, at ``time`` (UTC us); ``pack`` says whether its content is wanted."""
        before = self.version
        self.version = max(self.version, self._least) + 1
        self._rows_published = self._rows_checked = self._trainer.rows_learned
        if not before:
            self._draw()
        codes, fvu = self._codes()
        movement = self._movement(codes)
        found = match(self.last(), self._snapshot(codes), anew=self._begun()) if before else None
        ids = self._identity.ids
        if found is None:
            self._identity.begin(self._trainer.dictionary.features, self.version)
        else:
            self._identity.follow(found, self.version)
        begun = np.arange(len(self._identity.ids)) if found is None else found.order
        rows = {"feature": self._feature_rows(self._told if len(self._told) else ids, begun)}
        self._told = self._told[:0]
        if found is not None:
            rows["feature_match"] = self._match_rows(ids, found, before)
        probe, probe_rows = self.probe, len(self._probe_rows)
        if before and self._reservoir.seen >= _DOUBLED * self._probe_seen:
            self._draw()
            codes, _ = self._codes()
        self._keep(codes)
        artefact = self._pack(reason, time) if pack else None
        self.digest = artefact and artefact.digest
        rows["dictionary"] = self._dictionary_row(
            {
                "published": time,
                "reason": reason,
                "parent": before or None,
                "digest": self.digest,
                "fvu": fvu,
                "decoder_moved": movement.decoder,
                "codes_moved": movement.codes,
                "probe": probe,
                "probe_rows": probe_rows,
            }
        )
        return Published(self.version, rows, artefact, begun)

    def reserve(self, version: int, ids: Tensor | None = None) -> None:
        """Never publish under ``version`` or below again: a learner that was ahead of this one did.

        ``ids`` int64 [F] are those of its last version. What it said of features is put right by the next one, which is
        then due at once.
        """
        self._least = max(self._least, version)
        if ids is not None and version > self.version:
            self._told = ids.clone()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "generator": self._generator.get_state(),
            "least": self._least,
            "digest": torch.tensor(list(bytes.fromhex(self.digest or "")), dtype=torch.uint8),
            **{name: getattr(self, name).clone() for name in _TENSORS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`. Raises ValueError for one of another shape."""
        shape = self._trainer.dictionary.W_dec.shape
        if int(state["version"]) and state["_W_dec"].shape != shape:
            raise ValueError(f"the last version has decoder rows {list(state['_W_dec'].shape)}, not {list(shape)}")
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        self._least, self.digest = int(state["least"]), bytes(state["digest"].tolist()).hex() or None
        self._generator.set_state(state["generator"])
        for name in _TENSORS:
            setattr(self, name, state[name].to(MAIN_MEMORY, copy=True))

    # -- inside -------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Draw the probe rows: a uniform sample of the reservoir's, which is one of the stream's."""
        count = self._reservoir.count
        chosen = torch.randperm(count, generator=self._generator)[: self.config.probe_rows]
        self._probe_rows = self._reservoir.rows[chosen.to(self._reservoir.rows.device)].to(MAIN_MEMORY, copy=True)
        self._probe_seen = self._reservoir.seen
        self.probe += 1

    def _codes(self) -> tuple[Codes, float | None]:
        """Codes of the probe rows by the dictionary as it is, in main memory, and their fvu."""
        dictionary = self._trainer.dictionary
        index, value, error, squares = [], [], 0.0, 0.0
        total = torch.zeros(dictionary.width, dtype=torch.float64)
        # as many rows at a time as in learning: products of all of them at once would keep their memory
        for start in range(0, len(self._probe_rows), self.config.batch_rows):
            part = self._probe_rows[start : start + self.config.batch_rows]
            y = self._trainer.apply(part.to(dictionary.W_dec.device))
            codes = dictionary.encode(y)
            error += float((dictionary.decode(codes) - y).double().square().sum())
            squares += float(y.double().square().sum())
            total += y.double().sum(0).cpu()
            index.append(codes.index.cpu())
            value.append(codes.value.cpu())
        if not index:
            return Codes(self._index[:0], self._value[:0]), None
        variance = squares - float(total.square().sum()) / len(self._probe_rows)
        return Codes(torch.cat(index), torch.cat(value)), error / variance if variance > 1e-9 * squares else None

    def _movement(self, codes: Codes) -> Movement:
        dictionary = self._trainer.dictionary
        if not len(self._W_dec):
            return Movement(None, None)
        kept = np.flatnonzero((~dictionary.dead.cpu() & ~self._begun()).numpy())
        cosine = cosines(self._W_dec, dictionary.W_dec, kept, kept)
        decoder = max(0.0, 1 - float(cosine.mean())) if len(kept) else None  # in half precision norms are 1 but about
        was, now = (_keys(one, dictionary.features) for one in (Codes(self._index, self._value), codes))
        lost = len(np.setdiff1d(was, now, assume_unique=True))
        return Movement(decoder, lost / len(was) if len(was) else None)

    def _snapshot(self, codes: Codes) -> Snapshot:
        dictionary = self._trainer.dictionary
        return Snapshot(dictionary.W_dec, codes, ~dictionary.dead)

    def _begun(self) -> Tensor:
        """Latents that were set anew since the last version, bool [F]."""
        return self._trainer.dictionary.revivals.cpu() != self._revivals

    def _keep(self, codes: Codes) -> None:
        """What the next version is compared with."""
        dictionary = self._trainer.dictionary
        self._index, self._value = codes.index.clone(), codes.value.clone()
        self._W_dec = dictionary.W_dec.to(MAIN_MEMORY, torch.float16, copy=True)
        self._alive = (~dictionary.dead).to(MAIN_MEMORY)
        self._revivals = dictionary.revivals.to(MAIN_MEMORY, copy=True)

    def _pack(self, reason: str, time: int) -> Artefact:
        trainer, affine = self._trainer, self._trainer.normaliser.affine()
        beside = {"normaliser.mean": affine.mean, "normaliser.scale": torch.tensor(affine.scale, dtype=torch.float64)}
        if affine.matrix is not None:
            beside["normaliser.matrix"] = affine.matrix
        beside |= {"identity.ids": self._identity.ids, "identity.born": self._identity.born}
        about = {
            "version": self.version,
            "published": time,
            "reason": reason,
            "next_id": self._identity.next_id,
            "rows_learned": trainer.rows_learned,
            "rows_replayed": trainer.rows_replayed,
            "rows_skipped": trainer.rows_skipped,
            "features_revived": trainer.dictionary.rows_revived_total,
            "transforms": len(trainer.normaliser.transforms),
            "normalise": self.config.normalise,
        }
        packed = files.pack(trainer.dictionary, about={"metadata": {"training": about}}, beside=beside)
        return Artefact(self.version, packed.tensors, packed.document)

    # -- tables -------------------------------------------------------------------------------------------------

    def _dictionary_row(self, told: dict[str, Any]) -> pa.RecordBatch:
        dictionary = self._trainer.dictionary
        row = told | {
            "stream_key": self.stream_key,
            "version": self.version,
            "rows_learned": self._trainer.rows_learned,
            "features": dictionary.features,
            "k": dictionary.k,
            "variant": self.config.variant,
        }
        return record_batch({name: [value] for name, value in row.items()}, tables.DICTIONARY)

    def _feature_rows(self, told: Tensor, begun: NDArray[np.int64]) -> pa.RecordBatch:
        """Ids that began, that ended, and that stand at another index than was ``told``, int64 [F], of them last."""
        ids, before = self._identity.ids.numpy(), told.numpy()
        order = np.argsort(before)
        place = order[np.searchsorted(before, ids, sorter=order).clip(max=len(before) - 1)] if len(before) else ids
        known = before[place] == ids if len(before) else np.zeros(len(ids), bool)
        elsewhere = np.setdiff1d(np.flatnonzero(~known | (place != np.arange(len(ids)))), begun)
        ended = np.flatnonzero(~np.isin(before, ids))
        states = [
            ("born", ids[begun], begun),
            ("renumbered", ids[elsewhere], elsewhere),
            ("lost", before[ended], ended),
        ]
        count = sum(len(index) for _, _, index in states)
        return record_batch(
            {
                "stream_key": np.full(count, self.stream_key),
                "dictionary_version": np.full(count, self.version),
                "feature_id": np.concatenate([one for _, one, _ in states]),
                "feature": np.concatenate([index for _, _, index in states]),
                "state": np.repeat([state for state, _, _ in states], [len(index) for _, _, index in states]),
            },
            tables.FEATURE,
        )

    def _match_rows(self, former: Tensor, found: Match, parent: int) -> pa.RecordBatch:
        count = len(found.kind)
        sides = {}
        for side, index, ids in (("from", found.before, former), ("to", found.after, self._identity.ids)):
            nobody = index < 0
            sides[f"{side}_feature"] = pa.array(index, mask=nobody)
            sides[f"{side}_id"] = pa.array(ids.numpy()[index], mask=nobody)
        return record_batch(
            {
                "stream_key": np.full(count, self.stream_key),
                "from_version": np.full(count, parent),
                "to_version": np.full(count, self.version),
                "kind": np.array(KINDS)[found.kind],
                "cosine": pa.array(found.cosine, mask=np.isnan(found.cosine)),
                "correlation": pa.array(found.correlation, mask=np.isnan(found.correlation)),
                **sides,
            },
            tables.FEATURE_MATCH,
        )


def _keys(codes: Codes, features: int) -> NDArray[np.int64]:
    """A number for each active (row, feature) pair of codes."""
    row, place = (codes.value > 0).nonzero(as_tuple=True)
    keys: NDArray[np.int64] = (row * features + codes.index[row, place]).numpy()
    return keys
