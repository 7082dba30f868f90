"""A dictionary as it was when it was published, for encoding alone."""

import copy
from typing import Any

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.normaliser import Normaliser
from hydrophoned.learn.placement import MAIN_MEMORY
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

_NOT_NEEDED = ("m_dec", "v_dec", "m_enc", "v_enc", "m_bias", "v_bias", "steps")
_CHUNK = 2048


class FrozenEncoder:
    """Codes of raw rows by the weights and the transform that were in force at ``version``; in main memory.

    It takes 4 or 6 bytes for each of 2 F d weights; the optimiser's moments are not copied. ``ids`` int64 [F] are those
    of the features then.
    """

    def __init__(self, dictionary: SparseAutoencoder, normaliser: Normaliser, version: int, ids: Tensor) -> None:
        self.version, self.ids = version, ids.clone()
        self.features = dictionary.features
        self._dictionary = _empty(dictionary.config)
        for name, tensor in dictionary.tensors().items():
            if name not in _NOT_NEEDED:
                self._dictionary.tensors()[name].copy_(tensor)
        self._dictionary.latents.refresh()
        affine = copy.deepcopy(normaliser.affine())
        self._mean = affine.mean.to(MAIN_MEMORY)
        self._scale = affine.scale
        self._matrix = None if affine.matrix is None else affine.matrix.to(MAIN_MEMORY)

    def encode(self, x: Tensor) -> Codes:
        """Codes of finite raw rows x [n, d] in main memory."""
        parts = [
            self._dictionary.encode(self._apply(x[start : start + _CHUNK].float()))
            for start in range(0, len(x), _CHUNK)
        ]
        return Codes(torch.cat([part.index for part in parts]), torch.cat([part.value for part in parts]))

    def _apply(self, x: Tensor) -> Tensor:
        centred = x - self._mean
        return centred.mul_(self._scale) if self._matrix is None else centred @ self._matrix.T

    def state_dict(self) -> dict[str, Any]:
        """Weights, transform and version."""
        weights = {name: tensor for name, tensor in self._dictionary.tensors().items() if name not in _NOT_NEEDED}
        matrix = {} if self._matrix is None else {"matrix": self._matrix}
        return {"version": self.version, "ids": self.ids, "mean": self._mean, "scale": self._scale, **matrix, **weights}

    @classmethod
    def of_state(cls, state: dict[str, Any], config: DictionaryConfig) -> "FrozenEncoder":
        """The encoder whose state this is; ``config`` is of the dictionary it was made from."""
        self = cls.__new__(cls)
        self.version, self.ids, self.features = int(state["version"]), state["ids"], config.features
        self._dictionary = _empty(config)
        for name, tensor in self._dictionary.tensors().items():
            if name not in _NOT_NEEDED:
                tensor.copy_(state[name])
        self._dictionary.latents.refresh()
        self._mean, self._scale, self._matrix = state["mean"], float(state["scale"]), state.get("matrix")
        return self


def _empty(config: DictionaryConfig) -> SparseAutoencoder:
    # pages of moments that are never written are never taken from the system
    return SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
