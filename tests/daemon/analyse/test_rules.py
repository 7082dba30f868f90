"""Rules as JSON, in words, and on rows."""

import numpy as np
import pytest
from hydrophoned.analyse.errors import BadRule
from hydrophoned.analyse.facts import facts
from hydrophoned.analyse.pieces import CLASSES, classes
from hydrophoned.analyse.rules import Predicate, Rule
from hypothesis import given
from hypothesis import strategies as st
from labelled import text

scalars = st.text(max_size=8) | st.integers(-5, 5) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
names = st.lists(st.sampled_from(list(CLASSES)), unique=True, max_size=3)
ranges = st.integers(0, 12).map(lambda level: (0, 0) if level == 0 else (1 << (level - 1), (1 << level) - 1))


@st.composite
def predicates(draw):
    field = draw(st.sampled_from(["token", "word", "previous", "phase", "position", "attribute:tenant"]))
    values = {"token": st.integers(0, 99), "position": ranges, "attribute:tenant": scalars}.get(field, st.text())
    chosen = draw(st.lists(values, max_size=12))
    return Predicate(field, tuple(chosen), tuple(draw(names.filter(bool)) if not chosen else draw(names)))


rules = st.lists(st.lists(predicates(), min_size=1, max_size=2), min_size=1, max_size=3).map(
    lambda clauses: Rule(tuple(tuple(clause) for clause in clauses))
)


@given(rule=rules)
def test_a_rule_survives_json_and_has_a_text(rule):
    again = Rule.from_json(rule.to_json())
    assert again == rule
    assert [type(value) for c in again.clauses for p in c for value in p.values] == [
        type(value) for c in rule.clauses for p in c for value in p.values
    ]
    assert rule.text({5: " five"})


MADE = text(requests=20)
KNOWN = MADE.facts()


@given(rule=rules)
def test_a_rule_holds_where_one_of_its_clauses_does(rule):
    parts = [Rule((clause,)).apply(KNOWN) for clause in rule.clauses]
    assert (rule.apply(KNOWN) == np.logical_or.reduce(parts)).all()
    for clause, part in zip(rule.clauses, parts, strict=True):
        assert (part == np.logical_and.reduce([predicate.apply(KNOWN) for predicate in clause])).all()


def test_predicates_hold_where_they_say():
    piece = MADE.piece()
    of = {name: np.array([name in classes(one) for one in piece]) for name in CLASSES}
    for name in CLASSES:
        assert (Predicate("token", (), (name,)).apply(KNOWN) == of[name]).all()
    assert (Predicate("word", ("the",)).apply(KNOWN) == np.isin(piece, [" the", "the", "The"])).all()
    assert (Predicate("position", ((2, 3), (0, 0))).apply(KNOWN) == np.isin(MADE.rows.position, [0, 2, 3])).all()
    assert (Predicate("phase", ("decode",)).apply(KNOWN) == (MADE.rows.phase == 1)).all()
    assert (Predicate("attribute:paid", (True,)).apply(KNOWN) == np.array(MADE.attributes["paid"])).all()
    before = np.array([one == " of" for one in MADE.previous])
    assert (Predicate("previous", (" of",)).apply(KNOWN) == before).all()
    assert (Predicate("previous word", ("of",)).apply(KNOWN) == before).all()


def test_what_is_not_known_holds_nowhere():
    bare = facts(MADE.rows)
    for predicate in (
        Predicate("word", ("the",)),
        Predicate("token", (), ("digits",)),
        Predicate("attribute:paid", (True,)),
        Predicate("attribute:paid", (1,)),
        Predicate("token", (10**6,)),
    ):
        assert not predicate.apply(bare).any()
    assert not Predicate("attribute:paid", (1,)).apply(KNOWN).any()  # true is not 1


def test_a_rule_made_on_some_rows_holds_on_others():
    rule = Rule(((Predicate("token", (3, 17)), Predicate("position", ((1, 1), (2, 3)))),))
    other = text(requests=7, seed=5)
    wanted = np.isin(other.rows.token, [3, 17]) & np.isin(other.rows.position, [1, 2, 3])
    assert (rule.apply(other.facts()) == wanted).all()
    assert (rule.apply(other.facts().take(wanted))).all()


def test_the_text_shows_a_few_values_and_counts_the_others():
    strings = {token: f" w{token}" for token in range(9)} | {9: "\u010a"}
    assert Predicate("token", (9,)).text(strings) == 'token is "\\n"'
    assert Predicate("token", tuple(range(9)), ("digits", "quote")).text(strings) == (
        'token is digits or quote or one of " w0", " w1", " w2", " w3", " w4", " w5", " w6", " w7" and 1 more'
    )
    assert Predicate("position", ((0, 0), (4, 7))).text({}) == "position is one of 0, 4 to 7"
    assert Predicate("token", (70, 71)).text({}) == "token is one of 70, 71"
    assert Predicate("attribute:tenant", (1, True, "a")).text({}) == 'tenant is one of 1, true, "a"'


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "not JSON"),
        ("[]", "a rule is"),
        ('{"any": []}', "a rule is"),
        ('{"any": [[]]}', "a rule is"),
        ('{"any": [["x"]]}', "no predicate"),
        ('{"any": [[{"field": "token"}]]}', "no predicate"),
        ('{"any": [[{"field": "token", "in": [1], "more": 2}]]}', "no predicate"),
        ('{"any": [[{"field": "colour", "in": [1]}]]}', "no field 'colour'"),
        ('{"any": [[{"field": "token", "in": []}]]}', "needs a list"),
        ('{"any": [[{"field": "token", "classes": ["vowels"]}]]}', "no class 'vowels'"),
        ('{"any": [[{"field": "position", "in": [[0, 3]]}]]}', "no range of positions"),
        ('{"any": [[{"field": "position", "in": [0]}]]}', "no range of positions"),
        ('{"any": [[{"field": "word", "in": [null]}]]}', "values of word"),
    ],
)
def test_what_is_no_rule_is_told_apart(given, message):
    with pytest.raises(BadRule, match=message):
        Rule.from_json(given)
