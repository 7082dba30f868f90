import pytest
import torch
from hydrophoned.learn.config import VARIANTS
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from hydrophoned.testing import check_dictionary


def made(kind=SparseAutoencoder, **settings):
    config = DictionaryConfig(**({"width": 16, "features": 64, "k": 4} | settings))
    return lambda: kind(config, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_holds_to_the_contract(variant):
    check_dictionary(made(variant=variant), width=16)


class Stubborn(SparseAutoencoder):
    def partial_fit(self, x):
        return super().partial_fit(x[:1] * 0)


class Negative(SparseAutoencoder):
    def encode(self, x, *, exact=False):
        codes = super().encode(x, exact=exact)
        return Codes(codes.index, codes.value - 1)


class Neighbourly(SparseAutoencoder):
    def encode(self, x, *, exact=False):
        return super().encode(x - x.mean(0) if len(x) else x, exact=exact)


class Forgetful(SparseAutoencoder):
    def load_state(self, state):
        super().load_state(state)
        self.latents.v_dec.zero_()
        return self


class Careless(SparseAutoencoder):
    def _check(self, x):
        pass


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Stubborn, "fvu of rows not learned"),
        (Negative, "is negative"),
        (Neighbourly, "how rows are split"),
        (Forgetful, "not the same after saving and loading"),
    ],
)
def test_what_does_not_hold_is_said(kind, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_dictionary(made(kind), width=16)


def test_a_dictionary_that_takes_rows_of_any_width_is_found_out():
    with pytest.raises((AssertionError, RuntimeError), match=r"width|shape|size"):
        check_dictionary(made(Careless), width=16)
