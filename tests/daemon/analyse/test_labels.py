"""The built-in labeller: planted features get the right label, noise gets none, and what it says of itself holds."""

import json

import numpy as np
import pytest
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.facts import facts
from hydrophoned.analyse.firing import Firing
from hydrophoned.analyse.labels import Labeller, floors, score_of
from hydrophoned.analyse.rule_search import RuleSearch, information
from hydrophoned.analyse.rules import Predicate, Rule
from hydrophoned.analyse.token_share import DEPENDENT, token_share
from hydrophoned.learn.code_sample import CodedRows
from labelled import PIECES, firing, noisy, text

MADE = text()
PIECE = MADE.piece()
STRIPPED = np.array([piece.strip() for piece in PIECE], dtype=object)
PREVIOUS = np.array([piece or "" for piece in MADE.previous], dtype=object)
LANGUAGE = np.array(MADE.attributes["language"], dtype=object)

PLANTED = {
    "token is digits": np.array([piece.isdecimal() for piece in PIECE]),
    "token is line end": np.array(["\n" in piece for piece in PIECE]),
    'token is " return"': PIECE == " return",
    'word is "the"': np.isin(STRIPPED, ["the", "The"]),
    "position is 0": MADE.rows.position == 0,
    "phase is decode": MADE.rows.phase == 1,
    'language is "de"': LANGUAGE == "de",
    "paid is true": np.array(MADE.attributes["paid"]),
    'the token before is " of"': PREVIOUS == " of",
    'token is " value" and language is "fr"': (PIECE == " value") & (LANGUAGE == "fr"),
}
SAID_OTHERWISE = {
    'token is " return"': ['word is "return"'],
    'the token before is " of"': ['the word before is "of"'],
    'token is " value" and language is "fr"': [
        'word is "value" and language is "fr"',
        'language is "fr" and token is " value"',
        'language is "fr" and word is "value"',
    ],
}


def labelled(wanted, **options):
    made = MADE.with_features(noisy(wanted, np.random.default_rng(1), **options)[:, None])
    return Labeller(made.facts(), firing(made)).label(0)


@pytest.mark.parametrize("wanted", list(PLANTED), ids=list(PLANTED))
def test_a_planted_feature_gets_its_label(wanted):
    label = labelled(PLANTED[wanted])
    assert label.rule.text(MADE.strings) in {wanted, *SAID_OTHERWISE.get(wanted, ())}
    assert label.score.recall > 0.8
    assert label.score.precision > 0.8
    assert label.score.requests == label.learned.requests == 100


def test_a_feature_of_several_tokens_is_told_by_them():
    wanted = np.isin(PIECE, [" if", " for", " when", ":"])
    label = labelled(wanted, on=0.9)
    ((predicate,),) = label.rule.clauses
    found = {PIECES[value] for value in predicate.values} if predicate.field == "token" else set(predicate.values)
    assert {piece.strip() for piece in found} == {"if", "for", "when", ":"}


def test_without_text_tokens_are_told_by_their_ids():
    made = MADE.with_features(noisy(PIECE == " return", np.random.default_rng(1))[:, None])
    label = Labeller(facts(made.rows), firing(made)).label(0)
    token = PIECES.index(" return")
    assert label.rule.text() == f"token is {token}"
    assert json.loads(label.rule.to_json()) == {"any": [[{"field": "token", "in": [token]}]]}


def test_the_order_of_rows_does_not_matter():
    random = np.random.default_rng(2)
    fires = np.stack([noisy(wanted, random, on=0.7, off=0.02) for wanted in PLANTED.values()], 1)
    made = MADE.with_features(fires)
    order = random.permutation(made.rows.rows)
    other = made._replace(
        rows=made.rows.take(order),
        previous=[made.previous[row] for row in order],
        attributes={name: [values[row] for row in order] for name, values in made.attributes.items()},
    )
    one, two = (Labeller(each.facts(), firing(each)) for each in (made, other))
    for feature in range(len(PLANTED)):
        a, b = one.label(feature), two.label(feature)
        assert a.score == b.score
        assert a.learned == b.learned


# -- on nothing ---------------------------------------------------------------------------------------------------


def null_features(kind, count, random):
    """Features whose firing says nothing of a row: drawn row by row, or in spells that take whole requests."""
    n = MADE.rows.rows
    rate = np.exp(random.uniform(np.log(0.005), np.log(0.3), count))
    if kind == "rows":
        return random.random((n, count)) < rate
    spells = random.random((200, count)) < 0.15
    return spells[MADE.rows.request] & (random.random((n, count)) < 0.5)


@pytest.mark.parametrize("kind", ["rows", "spells"])
def test_features_that_mean_nothing_get_no_label(kind):
    """Of 200 null features at most 1 in 50 gets a rule: the search itself and the held-out test both stand guard."""
    made = MADE.with_features(null_features(kind, 200, np.random.default_rng(3)))
    labeller = Labeller(made.facts(), firing(made))
    labels = [label for feature in range(200) if (label := labeller.label(feature)) is not None]
    assert len(labels) <= 4


def test_a_feature_that_hardly_fires_gets_no_label():
    fires = np.zeros(MADE.rows.rows, dtype=bool)
    fires[np.flatnonzero(PIECE == " return")[:9]] = True
    made = MADE.with_features(fires[:, None])
    assert Labeller(made.facts(), firing(made)).label(0) is None


def test_held_out_precision_is_unbiased_and_in_sample_precision_is_not():
    """Each token has a chance of firing that is known, so what a rule should reach on any rows is known too."""
    random = np.random.default_rng(4)
    features = 150
    chance = random.beta(0.5, 6, (len(PIECES), features))
    token = MADE.rows.token
    made = MADE.with_features(random.random((len(token), features)) < chance[token])
    labeller = Labeller(facts(made.rows), firing(made))
    search = labeller._search
    held_out, learned = [], []
    for feature in range(features):
        fires = made.rows.value[:, feature] > 0
        rule = search.rule(fires[labeller.learning])
        if rule is None:
            continue
        says = rule.apply(facts(made.rows))
        for part, found in ((~labeller.learning, held_out), (labeller.learning, learned)):
            found.append(fires[says & part].mean() - chance[token[says & part], feature].mean())
    held_out, learned = np.array(held_out), np.array(learned)
    error = held_out.std() / np.sqrt(len(held_out))
    assert len(held_out) > 100
    assert abs(held_out.mean()) < 3 * error
    assert learned.mean() > 3 * error


def test_on_noise_the_rows_learned_on_flatter():
    """Rules made from noise, whatever guards against them: good on their own rows, at the base rate elsewhere."""
    random = np.random.default_rng(5)
    made = MADE.with_features(random.random((MADE.rows.rows, 40)) < 0.1)
    labeller = Labeller(facts(made.rows), firing(made))
    known = facts(made.rows)
    own, other = [], []
    for feature in range(40):
        fires = made.rows.value[:, feature] > 0
        learn = labeller.learning
        count = np.bincount(made.rows.token[learn], minlength=len(PIECES))
        hits = np.bincount(made.rows.token[learn & fires], minlength=len(PIECES))
        best = int(np.argmax(hits / np.maximum(count, 1)))
        rule = Rule(((Predicate("token", (best,)),),))
        own.append(score_of(rule, known.take(learn), fires[learn]).precision)
        other.append(labeller.score(rule, fires).precision)
    assert np.mean(own) > 0.2
    assert abs(np.mean(other) - 0.1) < 3 * np.std(other) / np.sqrt(40)


def test_floors_stand_beside_the_labels():
    random = np.random.default_rng(6)
    fires = np.stack([noisy(wanted, random) for wanted in PLANTED.values()], 1)
    made = MADE.with_features(fires)
    labeller = Labeller(made.facts(), firing(made))
    labels = [labeller.label(feature) for feature in range(len(PLANTED))]
    found = floors(labeller, firing(made), labels)
    assert found.false_rules == 0
    base = np.mean([label.score.fired / label.score.rows for label in labels])
    assert abs(found.permuted - base) < 0.05
    assert found.other_rule < 0.4 < min(label.score.precision for label in labels)
    assert floors(labeller, firing(made), []) == (None, None, None)


# -- the parts ----------------------------------------------------------------------------------------------------


def test_information_is_that_of_a_chernoff_bound():
    """exp(-information) bounds the binomial tail from above, at counts however small."""
    from math import comb

    for base in (0.01, 0.1, 0.4):
        for n in (2, 3, 7, 30):
            hits = np.arange(n + 1)
            bound = np.exp(-information(hits, np.full(n + 1, n), base))
            tail = [sum(comb(n, k) * base**k * (1 - base) ** (n - k) for k in range(hit, n + 1)) for hit in hits]
            assert (bound >= np.array(tail) - 1e-12).all()
            assert (bound[hits / n <= base] == 1).all()


def test_one_request_is_too_little():
    rows = MADE.rows.take(MADE.rows.request == 0)
    with pytest.raises(TooLittle, match="rows are of 1 request"):
        Labeller(facts(rows), Firing.of(rows, 1))


def test_rows_without_tokens_are_told_by_what_else_is_known():
    wanted = LANGUAGE == "de"
    made = MADE.with_features(noisy(wanted, np.random.default_rng(1))[:, None])
    unknown = made.rows._replace(token=np.full(made.rows.rows, -1, np.int32))
    label = Labeller(facts(unknown, attributes=MADE.attributes), firing(made)).label(0)
    assert label.rule.text() == 'language is "de"'


def test_rows_of_no_request_are_requests_of_their_own():
    n = 400
    random = np.random.default_rng(7)
    token = random.integers(0, 4, n).astype(np.int32)
    zeros = np.zeros(n, np.int32)
    fires = token == 2
    rows = CodedRows(
        np.zeros((n, 1), np.int32), fires[:, None].astype(np.float32), np.full(n, -1), zeros, zeros, zeros, token, zeros
    )
    label = Labeller(facts(rows), Firing.of(rows, 1)).label(0)
    assert label.rule.text() == "token is 2"
    assert label.score.requests == label.score.rows == n // 2


def test_attributes_of_too_many_values_are_left_out():
    many = [f"user-{request}" for request in MADE.rows.request]
    known = facts(MADE.rows, attributes={"user": many, "language": MADE.attributes["language"]})
    assert [name for name in known.fields if name.startswith("attribute:")] == ["attribute:language"]


def test_the_search_looks_at_no_other_rows():
    """What fires on rows outside the learning half changes no rule."""
    random = np.random.default_rng(8)
    made = MADE.with_features(noisy(PLANTED["token is digits"], random, on=0.6, off=0.03)[:, None])
    labeller = Labeller(made.facts(), firing(made))
    fires = made.rows.value[:, 0] > 0
    changed = np.where(labeller.learning, fires, random.random(len(fires)) < 0.5)
    search = RuleSearch(made.facts().take(labeller.learning), np.arange(labeller.learning.sum()) % 2 == 0)
    assert search.rule(fires[labeller.learning]) == search.rule(changed[labeller.learning])


# -- how much the token tells -------------------------------------------------------------------------------------


def test_the_token_tells_nothing_of_noise_and_all_of_a_token():
    random = np.random.default_rng(9)
    n = MADE.rows.rows
    null = random.random((n, 200)) < np.exp(random.uniform(np.log(0.005), np.log(0.2), 200))
    digits = noisy(PLANTED["token is digits"], random)
    position = noisy(PLANTED["position is 0"], random)
    made = MADE.with_features(np.column_stack([null, digits, position]))
    share = token_share(facts(made.rows), firing(made))
    assert not (share[:200] > 0).any()
    assert share[200] > 0.7
    assert share[201] < DEPENDENT


def test_the_share_is_that_of_the_entropy():
    """A feature that fires on half of one token's rows and no others: the share is known in closed form."""
    made = text(requests=2000, seed=10)
    token = int(np.argmax(np.bincount(made.rows.token)))
    chosen = made.rows.token == token
    random = np.random.default_rng(11)
    made = made.with_features((chosen & (random.random(len(chosen)) < 0.5))[:, None])
    p = chosen.mean() / 2
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    expected = 1 - chosen.mean() * np.log(2) / entropy
    (share,) = token_share(facts(made.rows), firing(made))
    assert share == pytest.approx(expected, abs=0.01)


# -- on a real tokenizer's tokens ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """Tokens of the demo's text by the demo's tokenizer, with their strings and documents."""
    from hydrophone.demo.corpus import builtin_documents
    from hydrophone.demo.model import _FILE, _bundled
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_bundled(), gguf_file=_FILE)
    documents = builtin_documents()[::4]
    ids = [
        tokenizer(document.text[:4000], add_special_tokens=False, verbose=False)["input_ids"] for document in documents
    ]
    token = np.concatenate([np.array(one, dtype=np.int32) for one in ids])
    request = np.repeat(np.arange(len(ids)), [len(one) for one in ids])
    strings = {int(one): tokenizer.decode([int(one)]) for one in np.unique(token)}
    return token, request, strings


@pytest.mark.llm
@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        ("digits", {"token is digits"}),
        ("line end", {"token is line end"}),
        ("return", {'word is "return"', 'token is one of " return", "return"'}),
    ],
)
def test_planted_features_on_real_tokens_get_their_label(real, wanted, texts):
    token, request, strings = real
    of_token = {
        "digits": lambda piece: piece.strip().isdecimal(),
        "line end": lambda piece: "\n" in piece and not piece.strip(),
        "return": lambda piece: piece.strip().lower() == "return",
    }[wanted]
    fires = noisy(np.array([of_token(strings[int(one)]) for one in token]), np.random.default_rng(12))
    n = len(token)
    zeros = np.zeros(n, np.int32)
    rows = CodedRows(
        np.zeros((n, 1), np.int32), fires[:, None].astype(np.float32), request, zeros, zeros, zeros, token, zeros
    )
    label = Labeller(facts(rows, strings=strings), Firing.of(rows, 1)).label(0)
    assert label.rule.text(strings) in texts
    assert label.score.recall > 0.85
