"""A training step of the TopK dictionary against an independent dense autograd implementation in float64."""

import torch
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

DTYPE = torch.float64


class DenseTopK:
    """The same loss written densely, with autograd and a per-latent Adam written out, nothing shared."""

    def __init__(self, dictionary: SparseAutoencoder) -> None:
        c = dictionary.config
        self.config = c
        self.W_enc, self.W_dec = dictionary.W_enc.clone(), dictionary.W_dec.clone()
        self.b_enc, self.b_dec = dictionary.b_enc.clone(), dictionary.b_dec.clone()
        self.silent = dictionary.silent_rows.clone()
        self.t = torch.zeros(c.features, dtype=DTYPE)
        self.moments = {name: [torch.zeros_like(getattr(self, name)) for _ in range(2)] for name in self.names}
        self.t_vector = 0
        self.rows = 0

    names = ("W_enc", "W_dec", "b_enc", "b_dec")

    def loss(self, x):
        c = self.config
        p = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        kth = p.topk(c.k, dim=1).values[:, -1:]
        z = torch.relu(p) * (p >= kth)
        y_hat = z @ self.W_dec + self.b_dec
        main = (y_hat - x).square().sum(1).mean() / x.shape[1]
        fired = (z > 0).any(0)
        dead = (self.silent >= c.dead_after_rows) & ~fired
        aux = x.new_zeros(())
        if c.aux_k and dead.any():
            e = (x - y_hat).detach()
            q = (x - self.b_dec.detach()) @ self.W_enc.T + self.b_enc
            q = q.masked_fill(~dead, float("-inf"))
            top = q.topk(min(c.aux_k, int(dead.sum())), dim=1)
            sparse = torch.zeros_like(p).scatter(1, top.indices, top.values)
            aux = c.aux_weight * (e - sparse @ self.W_dec).square().sum() / e.square().sum()
            fired_aux = torch.zeros_like(dead).index_fill(0, top.indices.reshape(-1), 1)
            return main + aux, fired, fired_aux
        return main, fired, torch.zeros_like(fired)

    def step(self, x):
        c = self.config
        for name in self.names:
            getattr(self, name).requires_grad_(True)
        with torch.enable_grad():
            loss, fired, helped = self.loss(x)
            grads = dict(
                zip(self.names, torch.autograd.grad(loss, [getattr(self, n) for n in self.names]), strict=True)
            )
        for name in self.names:
            getattr(self, name).requires_grad_(False)
        rate = c.learning_rate * max((1 + self.rows / c.decay_rows) ** -0.5, c.learning_rate_floor)
        along = (grads["W_dec"] * self.W_dec).sum(1, keepdim=True)
        grads["W_dec"] = grads["W_dec"] - along * self.W_dec
        touched = fired | helped
        self.t += touched
        self.t_vector += 1
        for name in self.names:
            m, v = self.moments[name]
            per_latent = name != "b_dec"
            mask = touched if per_latent else torch.ones((), dtype=torch.bool)
            t = self.t.clamp_min(1) if per_latent else torch.tensor(float(self.t_vector), dtype=DTYPE)
            if name.startswith("W"):
                mask, t = mask[:, None], t[:, None]
            m.copy_(torch.where(mask, 0.9 * m + 0.1 * grads[name], m))
            v.copy_(torch.where(mask, 0.99 * v + 0.01 * grads[name] ** 2, v))
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.99**t)
            eps = 1e-12 / (1 - 0.99**t).sqrt()  # the form of the paper's end of section 2: eps beside sqrt(v)
            parameter = getattr(self, name)
            own = rate * (c.encoder_rate if name in ("W_enc", "b_enc") else 1)
            parameter.sub_(torch.where(mask, own * m_hat / (v_hat.sqrt() + eps), torch.zeros_like(m)))
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        self.silent += len(x)
        self.silent[fired] = 0
        self.rows += len(x)
        return loss.item()


def make(**settings):
    generator = torch.Generator().manual_seed(1)
    config = DictionaryConfig(
        **({"width": 24, "features": 96, "k": 5, "dead_after_rows": 10**9, "revive_every_rows": 10**9} | settings)
    )
    dictionary = SparseAutoencoder(config, generator=generator, dtype=DTYPE)
    x = torch.randn(8, 200, 24, generator=generator, dtype=DTYPE)
    dictionary.initialise(x[0])
    dictionary.b_enc.normal_(0, 0.1, generator=generator)
    return dictionary, x


def assert_same(dictionary, reference):
    for name in reference.names:
        torch.testing.assert_close(getattr(dictionary, name), getattr(reference, name), rtol=1e-6, atol=1e-9)


def test_steps_equal_dense_autograd_with_per_latent_adam():
    dictionary, x = make()
    reference = DenseTopK(dictionary)
    for batch in x:
        dictionary.partial_fit(batch)
        reference.step(batch)
        assert_same(dictionary, reference)


def test_auxk_gives_dead_latents_the_gradient_of_the_residual():
    dictionary, x = make(dead_after_rows=100, aux_k=7)
    dictionary.silent_rows[:40] = 1000
    dictionary.b_enc[:40] = -50.0  # they cannot fire, only AuxK can move them
    reference = DenseTopK(dictionary)
    before = dictionary.W_dec[:40].clone()
    for batch in x:
        dictionary.partial_fit(batch)
        reference.step(batch)
        assert_same(dictionary, reference)
    assert (dictionary.W_dec[:40] - before).abs().max() > 1e-3


def test_report_is_of_the_state_before_the_step():
    dictionary, x = make()
    codes = dictionary.encode(x[1])
    error = dictionary.decode(codes) - x[1]
    fvu = float(error.square().sum() / (x[1] - x[1].mean(0)).square().sum())
    report = dictionary.partial_fit(x[1])
    assert abs(report.fvu - fvu) < 1e-12
    assert report.l0 == float((codes.value > 0).sum(1).double().mean())


def test_float32_with_low_precision_products_follows_float64():
    exact, x = make(features=256, k=8)
    config = exact.config
    fast = SparseAutoencoder(config, generator=torch.Generator().manual_seed(2))
    state = {k: v.float() if getattr(v, "is_floating_point", bool)() else v for k, v in exact.state_dict().items()}
    fast.load_state(state)
    for _ in range(5):
        for batch in x:
            a, b = exact.partial_fit(batch), fast.partial_fit(batch.float())
    assert abs(a.fvu - b.fvu) < 0.02 * a.fvu
