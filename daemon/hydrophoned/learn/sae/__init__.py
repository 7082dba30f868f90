"""Sparse autoencoders: the dictionaries of Hydrophone, in six variants behind one config and one contract.

``autoencoder`` holds what all share: initialisation, the training step, revival, state. A variant (one file each)
says which pairs of row and latent are active, what else the loss holds, and how its own numbers move.
"""

from hydrophoned.learn.config import VARIANTS
from hydrophoned.learn.sae.autoencoder import SparseAutoencoder
from hydrophoned.learn.sae.config import DictionaryConfig

__all__ = ["VARIANTS", "DictionaryConfig", "SparseAutoencoder"]
