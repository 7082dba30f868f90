import pytest
from hydrophone.errors import InvalidSite, SiteNotFound
from hydrophone.sites import middle_block, parse, resolve
from torch import nn


def net() -> nn.Module:
    def block() -> nn.Module:
        return nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)})

    return nn.ModuleDict({"embed": nn.Embedding(4, 2), "layers": nn.ModuleList([block() for _ in range(12)])})


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        (["layers.3"], ["layers.3"]),
        (["layers.3:output"], ["layers.3"]),
        (["layers.?"], [f"layers.{n}" for n in range(10)]),
        (["layers.*"], [f"layers.{n}" for n in range(12)]),
        (["layers.1*.mlp:input[0]"], [f"layers.{n}.mlp:input[0]" for n in (1, 10, 11)]),
        (["**.attn"], [f"layers.{n}.attn" for n in range(12)]),
        (["embed**"], ["embed"]),
        (["layers.2", "embed", "layers.2"], ["embed", "layers.2"]),
        (["layers.2", "layers.2:input"], ["layers.2", "layers.2:input"]),
        (["**.11.**"], ["layers.11", "layers.11.attn", "layers.11.mlp"]),
    ],
)
def test_sites_resolve_in_the_models_order(sites: list[str], names: list[str]) -> None:
    assert [site.name for site in resolve(net(), sites)] == names


@pytest.mark.parametrize(
    ("site", "near"),
    [
        ("layer.3", "layers.3"),
        ("layers.3.att", "layers.3.attn"),
        ("transformer.h.mlp", "layers.9.mlp"),
        ("zzzz", "embed, layers"),
    ],
)
def test_an_unknown_site_lists_near_matches(site: str, near: str) -> None:
    with pytest.raises(SiteNotFound, match=f"'{site}'.*{near}"):
        resolve(net(), [site])


@pytest.mark.parametrize("site", ["", "a b", "a:sideways", "a[x]", "a[1][2]", "a[-1]", 7])
def test_what_is_not_a_site(site: str) -> None:
    with pytest.raises(InvalidSite):
        parse(site)


def test_the_middle_block() -> None:
    assert middle_block(net()) == "layers.6"
    with pytest.raises(SiteNotFound, match="children are: 0, 1"):
        middle_block(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_a_module_reached_by_two_paths_is_found_by_both() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert [site.name for site in resolve(model, ["*"])] == ["a", "b"]
