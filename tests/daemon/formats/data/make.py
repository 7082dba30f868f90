"""Writes the folders beside it with the libraries whose formats they are in; README.md says when and with which.

python make.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning import dictionary as dl
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE, GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

WIDTH, FEATURES, K, ROWS = 16, 64, 8, 12


def disturb(module, seed, *, unit):
    """Weights that no default would hide: every parameter random, decoder rows of norm 1 or from 0.5 to 2."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    W_dec = torch.nn.functional.normalize(random(FEATURES, WIDTH), dim=1)
    norms = torch.ones(FEATURES) if unit else 0.5 + 1.5 * torch.rand(FEATURES, generator=generator)
    values = {"W_dec": W_dec * norms[:, None], "W_enc": W_dec + 0.1 * random(FEATURES, WIDTH)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            one = {"decoder.weight": "W_dec", "encoder.weight": "W_enc"}.get(name, name)
            if one in values:
                value = values[one]
                parameter.copy_(value if value.shape == parameter.shape else value.T)
            elif one == "threshold":
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.3 * random(*parameter.shape))
    return module


def rows():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(99)) * 2 + 0.5


def keep(directory, codes, rebuilt):
    """What the library itself makes of the rows, as it loads its own files."""
    tensors = {"rows": rows(), "codes": codes.detach(), "rebuilt": rebuilt.detach()}
    save_file({name: one.contiguous() for name, one in tensors.items()}, directory / "expected.safetensors")


def saelens(root):
    about = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}
    kinds = {
        "topk": (TopKSAE, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "topk-plain": (TopKSAE, {"k": K, "rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": False}),
        "jumprelu": (JumpReLUSAE, {"apply_b_dec_to_input": False}),
        "gated": (GatedSAE, {}),
        "standard": (StandardSAE, {"dtype": "float16"}),
    }
    for seed, (name, (kind, options)) in enumerate(kinds.items()):
        config = get_sae_class(name.partition("-")[0])[1](
            d_in=WIDTH, d_sae=FEATURES, metadata=SAEMetadata(**about), **options
        )
        directory = root / f"saelens-{name}"
        disturb(kind(config), seed, unit=False).save_model(directory)
        sae = SAE.load_from_disk(directory).to(dtype=torch.float32)
        codes = sae.encode(rows())
        keep(directory, codes, sae.decode(codes))


def sparsify(root):
    for seed, (name, unit) in enumerate({"topk": True, "topk-norms": False}.items(), 10):
        directory = root / f"sparsify-{name}" / "layers.1"
        coder = SparseCoder(WIDTH, SparseCoderConfig(num_latents=FEATURES, k=K, normalize_decoder=unit))
        disturb(coder, seed, unit=unit).save_to_disk(directory)
        coder = SparseCoder.load_from_disk(directory)
        top, index, _ = coder.encode(rows())
        keep(directory, torch.zeros(ROWS, FEATURES).scatter_(1, index, top), coder.decode(top, index))


def dictionary_learning(root):
    kinds = {
        "AutoEncoderTopK": (AutoEncoderTopK, {"k": K}),
        "BatchTopKSAE": (BatchTopKSAE, {"k": K}),
        "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKSAE, {"k": K, "group_sizes": [4, 12, 48]}),
        "JumpReluAutoEncoder": (dl.JumpReluAutoEncoder, {}),
        "GatedAutoEncoder": (dl.GatedAutoEncoder, {}),
        "AutoEncoder": (dl.AutoEncoder, {}),
    }
    for seed, (name, (kind, options)) in enumerate(kinds.items(), 20):
        directory = root / f"dictionary_learning-{name}"
        directory.mkdir()
        autoencoder = disturb(kind(WIDTH, FEATURES, **options), seed, unit="k" in options)
        if "k" in options:
            autoencoder.threshold.fill_(2.75)
        torch.save(autoencoder.state_dict(), directory / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": WIDTH, "dict_size": FEATURES, "layer": 1, "lm_name": "tiny"}
        trainer |= {"k": K} if "k" in options else {}
        (directory / "config.json").write_text(json.dumps({"trainer": trainer}, indent=1) + "\n")
        autoencoder, _ = load_dictionary(str(directory), "cpu")
        codes = autoencoder.encode(rows())
        keep(directory, codes, autoencoder.decode(codes))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for write in (saelens, sparsify, dictionary_learning):
        write(target)
