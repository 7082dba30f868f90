"""Ours and four other trainers of TopK autoencoders, behind one small interface: a step, a reconstruction.

All are given the same rows, normalised by us (mean removed, mean squared norm d), close to the scaling that those with
Adam ask for. What is not like for like:

- sparsify has no function for one step: ``Sparsify.step`` does, in its order, what its trainer's hook does for one
  module. Its optimiser is the trainer's default, schedule-free SignSGD with momentum 0.95; it is scored at its average.
- overcomplete has none either: its ``train_sae`` is called on one batch. Its parts about pictures (which need
  torchvision and matplotlib) are not imported.
- dictionary_learning, SAELens and overcomplete are told the number of steps and anneal to it, which ours and sparsify
  are not: at equal rows this favours them. Warm-up is a tenth of the steps (their defaults, 1000 steps, are longer
  than a whole run here).
- All four compute in float32. Ours takes one product in bfloat16 where the processor has it; ``ours_fp32`` does not.
- AuxK of dictionary_learning and SAELens starts after 10 million rows and 1000 steps by default, so never in these
  runs; sparsify's is off by default. They are left so, but for ``sae_lens_auxk``, where it starts after 8192 rows as
  ours does.
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import sys
import types
from typing import Any, NamedTuple, Protocol

import torch
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from torch import Tensor

PEERS = {
    "sparsify": "eai-sparsify",
    "dictionary_learning": "dictionary-learning",
    "sae_lens": "sae-lens",
    "overcomplete": "overcomplete",
}


class Rebuilt(NamedTuple):
    """Rows rebuilt [n, d], and which features fired on any of them, bool [F]."""

    rows: Tensor
    fired: Tensor


class Setting(NamedTuple):
    """What a trainer is made with; ``steps`` is the horizon of those that have one."""

    width: int
    features: int
    k: int
    learning_rate: float
    steps: int
    batch: int
    seed: int


class Trainer(Protocol):
    """One dictionary being trained."""

    def step(self, x: Tensor) -> None:
        """One training step on rows x [n, d]."""
        ...

    def rebuild(self, x: Tensor) -> Rebuilt:
        """Rows through the dictionary as it would be used now."""
        ...

    def directions(self) -> Tensor:
        """Decoder rows [F, d], of norm 1."""
        ...


class Ours:
    """Hydrophone's; ``learning_rate`` 0 means its default."""

    def __init__(self, setting: Setting, start: Tensor, *, low_precision: bool = True, **options: Any) -> None:
        if setting.learning_rate:
            options["learning_rate"] = setting.learning_rate
        config = DictionaryConfig(
            width=setting.width, features=setting.features, k=setting.k, low_precision=low_precision, **options
        )
        self.dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(setting.seed))
        self.dictionary.initialise(start)

    def step(self, x: Tensor) -> None:
        """One training step."""
        self.dictionary.partial_fit(x)

    def rebuild(self, x: Tensor) -> Rebuilt:
        """Rows through the dictionary."""
        codes = self.dictionary.encode(x)
        fired = torch.zeros(self.dictionary.features, dtype=torch.bool)
        fired[codes.index[codes.value > 0].long()] = True
        return Rebuilt(self.dictionary.decode(codes), fired)

    def directions(self) -> Tensor:
        """Decoder rows of norm 1."""
        return self.dictionary.W_dec


class Sparsify:
    """EleutherAI's sparsify."""

    def __init__(self, setting: Setting) -> None:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
        with contextlib.redirect_stdout(io.StringIO()):
            from schedulefree import ScheduleFreeWrapper
            from sparsify.config import SparseCoderConfig
            from sparsify.sign_sgd import SignSGD
            from sparsify.sparse_coder import SparseCoder
        torch.manual_seed(setting.seed)
        config = SparseCoderConfig(num_latents=setting.features, k=setting.k)
        self.coder = SparseCoder(setting.width, config, dtype=torch.float32)
        rate = setting.learning_rate or 5e-3 / (setting.features / 2**14) ** 0.5
        self.optimiser = ScheduleFreeWrapper(SignSGD(self.coder.parameters(), lr=rate), momentum=0.95)
        self.optimiser.train()
        self.silent_rows = torch.zeros(setting.features, dtype=torch.long)
        self.begun = False

    def step(self, x: Tensor) -> None:
        """One training step."""
        coder = self.coder
        if not self.begun:
            coder.b_dec.data = x.mean(0)
            self.begun = True
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        fired = torch.zeros_like(self.silent_rows, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.silent_rows += len(x)
        self.silent_rows[fired] = 0

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> Rebuilt:
        """Rows through the dictionary."""
        self.optimiser.eval()
        encoded = self.coder.encode(x)
        fired = torch.zeros(self.coder.num_latents, dtype=torch.bool)
        fired[encoded.top_indices[encoded.top_acts > 0]] = True
        rows = self.coder.decode(encoded.top_acts, encoded.top_indices)
        self.optimiser.train()
        return Rebuilt(rows, fired)

    @torch.no_grad()
    def directions(self) -> Tensor:
        """Decoder rows of norm 1."""
        self.optimiser.eval()
        found = torch.nn.functional.normalize(self.coder.W_dec.detach().clone(), dim=1)
        self.optimiser.train()
        return found


class DictionaryLearning:
    """saprmarks/dictionary_learning, TopKTrainer."""

    def __init__(self, setting: Setting) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.trainer = TopKTrainer(
            steps=setting.steps,
            activation_dim=setting.width,
            dict_size=setting.features,
            k=setting.k,
            layer=0,
            lm_name="benchmark",
            lr=setting.learning_rate or None,
            warmup_steps=setting.steps // 10,
            decay_start=setting.steps * 4 // 5,
            seed=setting.seed,
            device="cpu",
        )
        self.steps = 0

    def step(self, x: Tensor) -> None:
        """One training step."""
        self.trainer.update(self.steps, x)
        self.steps += 1

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> Rebuilt:
        """Rows through the dictionary."""
        rows, codes = self.trainer.ae(x, output_features=True)
        return Rebuilt(rows, (codes > 0).any(0))

    def directions(self) -> Tensor:
        """Decoder rows of norm 1."""
        return torch.nn.functional.normalize(self.trainer.ae.decoder.weight.detach().T, dim=1)


class SaeLens:
    """decoderesearch/SAELens, TopK."""

    def __init__(self, setting: Setting, *, dead_after_rows: int = 0) -> None:
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(setting.seed)
        config = TopKTrainingSAEConfig(d_in=setting.width, d_sae=setting.features, k=setting.k, device="cpu")
        trainer_config = SAETrainerConfig(
            total_training_samples=setting.steps * setting.batch,
            train_batch_size_samples=setting.batch,
            lr=setting.learning_rate or 3e-4,
            lr_end=(setting.learning_rate or 3e-4) / 10,
            lr_warm_up_steps=max(2, setting.steps // 10),
            lr_decay_steps=setting.steps // 5,
            dead_feature_window=dead_after_rows // setting.batch or 1000,
            device="cpu",
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(cfg=trainer_config, sae=TopKTrainingSAE(config), data_provider=iter(()))

    def step(self, x: Tensor) -> None:
        """One training step."""
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> Rebuilt:
        """Rows through the dictionary."""
        codes = self.trainer.sae.encode(x)
        return Rebuilt(self.trainer.sae.decode(codes), (codes > 0).any(0))

    def directions(self) -> Tensor:
        """Decoder rows of norm 1."""
        return torch.nn.functional.normalize(self.trainer.sae.W_dec.detach(), dim=1)


class Overcomplete:
    """KempnerInstitute/overcomplete, TopKSAE."""

    def __init__(self, setting: Setting) -> None:
        _leave_out("overcomplete.models", "overcomplete.visualization")
        from overcomplete.sae import CosineScheduler, TopKSAE, train_sae

        torch.manual_seed(setting.seed)
        self.train = train_sae
        self.model = TopKSAE(setting.width, nb_concepts=setting.features, top_k=setting.k, device="cpu")
        rate = setting.learning_rate or 1e-3
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=rate)
        warm_up = max(1, setting.steps // 10)
        self.schedule = CosineScheduler(self.optimiser, rate, rate / 100, setting.steps, warm_up, rate / 10)

    def step(self, x: Tensor) -> None:
        """One training step."""
        self.train(self.model, [x], _squared_error, self.optimiser, scheduler=self.schedule, nb_epochs=1, monitoring=0)

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> Rebuilt:
        """Rows through the dictionary."""
        self.model.eval()
        _, codes, rows = self.model(x)
        return Rebuilt(rows, (codes > 0).any(0))

    @torch.no_grad()
    def directions(self) -> Tensor:
        """Decoder rows of norm 1."""
        return torch.nn.functional.normalize(self.model.get_dictionary().detach(), dim=1)


_CLASSES: dict[str, Any] = {
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "sae_lens": SaeLens,
    "overcomplete": Overcomplete,
}


def make(name: str, setting: Setting, start: Tensor) -> Trainer:
    """The trainer called ``name``; ``start`` are the first rows, which ours points its latents at."""
    if name == "ours":
        return Ours(setting, start)
    if name == "ours_fp32":
        return Ours(setting, start, low_precision=False)
    if name == "sae_lens_auxk":
        return SaeLens(setting, dead_after_rows=8192)
    trainer: Trainer = _CLASSES[name](setting)
    return trainer


def installed() -> dict[str, str]:
    """Versions of the peers that are here, by name."""
    found = {}
    for name, distribution in PEERS.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(distribution)
    return found


def _squared_error(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
    return (x - x_hat).square().mean()


class _Nothing(types.ModuleType):
    """Stands for a module that is imported from, but not used."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _leave_out(*names: str) -> None:
    for name in names:
        sys.modules.setdefault(name, _Nothing(name))
