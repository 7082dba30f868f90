"""The variant that a config names."""

import torch

from hydrophoned.learn.sae.batchtopk import BatchTopK
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.gated import Gated
from hydrophoned.learn.sae.jumprelu import JumpReLU
from hydrophoned.learn.sae.l1 import L1
from hydrophoned.learn.sae.matryoshka import Matryoshka
from hydrophoned.learn.sae.topk import TopK
from hydrophoned.learn.sae.variant import Variant


def make_variant(config: DictionaryConfig, device: torch.device, dtype: torch.dtype) -> Variant:
    """``config.variant``, with its own numbers on ``device``."""
    if config.variant == "topk":
        return TopK(config)
    if config.variant == "matryoshka":
        return Matryoshka(config, device)
    if config.variant == "batchtopk":
        return BatchTopK(config, device, dtype)
    if config.variant == "jumprelu":
        return JumpReLU(config, device, dtype)
    if config.variant == "gated":
        return Gated(config, device, dtype)
    return L1(config, device)
