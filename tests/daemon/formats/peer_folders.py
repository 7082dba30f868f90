"""Folders that other libraries wrote, and dictionaries of our own beside them."""

from pathlib import Path

import torch
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"
PEERS = sorted(path.parent for path in DATA.glob("**/expected.safetensors"))
WEIGHTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors", "dictionary_learning": "ae.pt"}


def library(peer):
    return peer.relative_to(DATA).parts[0].partition("-")[0]


def weights(directory, form):
    """The tensors of a folder, as any tool would read them."""
    path = directory / WEIGHTS[form]
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def same_bits(one, other):
    return (
        one.keys() == other.keys()
        and all(one[name].dtype == other[name].dtype for name in one)
        and all(torch.equal(one[name], other[name]) for name in one)
    )


def dense(dictionary, rows):
    """Codes [n, F] and reconstructions [n, d]."""
    codes = dictionary.encode(rows)
    full = torch.zeros(len(rows), dictionary.features, dtype=codes.value.dtype)
    return full.scatter_add_(1, codes.index.long(), codes.value), dictionary.decode(codes)


def rows_of(n, d=16, seed=5):
    """Sums of three of 40 directions, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(40, d, generator=torch.Generator().manual_seed(1)), dim=1)
    chosen = torch.rand(n, 40, generator=generator).topk(3, dim=1).indices
    weight = 2 + 3 * torch.rand(n, 3, generator=generator)
    return (weight[:, :, None] * basis[chosen]).sum(1) + 0.5


def trained_on(y, variant, *, features=64, k=4, **settings):
    config = DictionaryConfig(
        width=y.shape[1], features=features, variant=variant, k=k, low_precision=False, dead_after_rows=1024, **settings
    )
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(3))
    dictionary.initialise(y[:1024])
    for batch in y.split(256):
        dictionary.partial_fit(batch)
    return dictionary
