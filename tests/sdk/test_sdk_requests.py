"""Which request a forward belongs to, over contexts, caches and samples."""

import asyncio
import gc
from random import Random

import pytest
from hydrophone.errors import InvalidOption
from hydrophone.requests import UNSAMPLED, Numbering, RequestBook
from hydrophone.sampling import Sampler


class Cache:
    pass


RANDOM = Random(0)  # noqa: S311  decides on samples


def book(sample: float = 1.0) -> RequestBook:
    return RequestBook("m", "1", Sampler(sample, RANDOM), Numbering())


def names(assignment: object) -> list[str]:
    return [request.id for request in assignment.requests]


def test_the_innermost_scope_counts() -> None:
    mine = book()
    with mine.scope("outer", {}) as outer:
        with mine.scope("inner", {"k": 1}):
            assert names(mine.assign(2)) == ["inner", "inner"]
        assert names(mine.assign(1)) == ["outer"]
        assert outer.id == "outer"
    assert names(mine.assign(1)) != ["outer"]


def test_scopes_of_two_taps_do_not_mix() -> None:
    one, two = book(), book()
    with one.scope("a", {}), two.scope("b", {}):
        assert names(one.assign(1)) == ["a"]
        assert names(two.assign(1)) == ["b"]


def test_asyncio_tasks_and_to_thread_see_their_own_request() -> None:
    mine = book()

    async def serve(name: str) -> list[str]:
        with mine.scope(name, {}):
            await asyncio.sleep(0)
            return names(await asyncio.to_thread(mine.assign, 1))

    async def both() -> list[list[str]]:
        return await asyncio.gather(serve("a"), serve("b"))

    assert asyncio.run(both()) == [["a"], ["b"]]


def test_a_cache_is_followed_until_it_begins_anew_or_its_batch_changes() -> None:
    mine, cache = book(), Cache()
    first = mine.assign(2, cache, 0)
    mine.remember(cache, first, 2, 5)
    assert mine.assign(2, cache, 5) is first
    assert mine.length(cache) == 5
    assert mine.assign(2, cache, 0) is not first
    assert mine.assign(3, cache, 5) is not first


def test_caches_are_not_kept_alive_and_a_new_one_at_the_same_address_is_new() -> None:
    mine = book()
    cache = Cache()
    mine.remember(cache, mine.assign(1, cache, 0), 1, 5)
    del cache
    gc.collect()
    assert not mine._caches
    mine.remember((1,), mine.assign(1), 1, 5)  # a tuple cannot be followed
    assert not mine._caches


def test_an_unsampled_request_stays_unsampled_over_its_cache() -> None:
    mine, cache = book(sample=0.0), Cache()
    first = mine.assign(2, cache, 0)
    assert first is UNSAMPLED
    mine.remember(cache, first, 2, 5)
    mine.sampler._base = 1.0
    assert mine.assign(2, cache, 5) is UNSAMPLED


def test_ids_are_shared_out_evenly_or_not_at_all() -> None:
    mine = book()
    with mine.scope(["a", "b"], {}) as scope:
        shared = mine.assign(4)
        assert (names(shared), shared.sequences) == (["a", "a", "b", "b"], (0, 1, 0, 1))
        assert mine.assign(3) is None
        assert mine.assign(1) is None
        assert scope.ids == ("a", "b")


@pytest.mark.parametrize("bad", ["", [], [""], 1.5, object(), ["a", None]])
def test_what_is_not_an_id(bad: object) -> None:
    with pytest.raises(InvalidOption, match="request id"), book().scope(bad, {}):
        pass


def test_attributes_are_made_plain_and_bounded() -> None:
    attributes = {"text": "x" * 5000, "big": 1 << 70, "flag": True, "share": 0.5, "list": [1]} | {
        f"k{n}": n for n in range(99)
    }
    with book().scope("a", attributes) as scope:
        kept = scope.requests[0].attributes
    assert len(kept) == 64
    assert kept["text"] == "x" * 1024
    assert (kept["big"], kept["flag"], kept["share"], kept["list"]) == (str(1 << 70), True, 0.5, "[1]")


def test_the_sample_rate_falls_under_pressure_and_recovers() -> None:
    sampler = Sampler(0.8, RANDOM)
    sampler.tick(fill=0.6, dropped=0)
    sampler.tick(fill=0.0, dropped=5)
    assert sampler.rate == pytest.approx(0.2)
    sampler.tick(fill=0.3, dropped=0)
    assert sampler.rate == pytest.approx(0.2)
    for _ in range(20):
        sampler.tick(fill=0.0, dropped=0)
    assert sampler.rate == pytest.approx(0.8)
    for _ in range(50):
        sampler.tick(fill=1.0, dropped=0)
    assert 0 < sampler.rate < 0.001
