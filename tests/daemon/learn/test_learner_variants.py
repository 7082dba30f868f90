from dataclasses import replace

import pytest
import torch
from hydrophoned.learn.config import VARIANTS
from test_learner import CONFIG, T0, assert_same_state, learner, make_rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_in_a_stream_and_goes_on_exactly(variant):
    config = replace(CONFIG, variant=variant)
    rows = make_rows(6000)
    whole, first = learner(config), learner(config)
    whole.observe(rows.slice(0, 3000))
    whole.state_dict()  # handles staged rows, as saving does
    whole.observe(rows.slice(3000, 6000))
    first.observe(rows.slice(0, 3000))
    second = learner(config)
    copied = {
        part: {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for part, values in first.state_dict().items()
    }
    second.load_state(copied)
    second.observe(rows.slice(3000, 6000))
    assert_same_state(whole, second)
    whole.advance(T0 + 60_000_000)
    closed = whole.take_closed()
    assert sum(tables["stream_window"]["rows"][0].as_py() for tables in closed) == 6000
    status, quality = whole.status(), whole.quality()
    assert status["fvu"] is None or status["fvu"] < 0.9
    assert status["variant"] == variant
    assert sum(quality["density"]) == 64
    by_count = [fvu for _, fvu in quality["assessed"]["fvu_by_count"]]
    assert by_count[-1] < by_count[0]
    encoded = whole.encode(rows.activation[:20])
    assert (encoded.value[:, :-1] >= encoded.value[:, 1:]).all()
