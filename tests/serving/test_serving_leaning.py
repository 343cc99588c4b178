"""Ranked by a person's own taste or by everyone's, and the sentences that say why."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import USER_SIDE, id_keys, start_factors
from sparkml_sgdals.serving.model.person import fold_in, nobody, person_of
from sparkml_sgdals.serving.model.reasons import event_sentence, sentence, shares
from sparkml_sgdals.serving.model.titles import Titles, spoken

EVENTS = settings_of(rank=4, learns_events=True, num_negatives=5, ranking_size=0)


def taste_of(state, row):
    """The score by the equations: what is the user's own and everyone's, each over its size."""
    users, items, settings, spread = state.users, state.items, state.settings, state.scale.spread
    features = users.mean[row, 1:].astype(float)
    variances = state.predict(np.full(items.size, row), np.arange(items.size))[1].astype(float)
    start = start_factors(
        id_keys(users.index.ids()), USER_SIDE, settings.rank, settings.seed, settings.init_std
    )[row, 1:]
    # equal priors of all coordinates
    features = features - start * np.minimum(users.var[row, 1:] / settings.factor_prior, 1)
    own = items.mean[:, 1:].astype(float) @ features * spread / np.sqrt(variances)
    general = items.mean[:, 0] * spread / np.sqrt(variances)
    return own / np.sqrt(np.mean(own**2)) + general / np.sqrt(np.mean(general**2))


def test_by_taste_what_is_the_users_own_counts_as_much(modeler, serving):
    made = modeler()
    run = serving(made)
    ids = made.state.items.index.ids().to_pylist()
    for number in (3, 17):
        user = made.key(0, number)
        row = made.state.users.index.find(pa.array([user]))[0]
        scores = taste_of(made.state, row)
        found = run.get(
            f"/recommendations/{user}", n=1000, rank_by="taste", exclude_seen=False
        )["items"]  # fmt: skip
        ordered = [scores[ids.index(one["item"])] for one in found]
        assert len(found) == len(ids)
        assert all(a >= b - 1e-4 for a, b in itertools.pairwise(ordered))
        # what is told of an item is its prediction, whatever it is ranked by
        usual = run.get(f"/recommendations/{user}", n=1000, exclude_seen=False)["items"]
        assert {o["item"]: o["prediction"] for o in usual} == {
            o["item"]: o["prediction"] for o in found
        }
        assert [o["item"] for o in usual] != [o["item"] for o in found]


@pytest.mark.parametrize(
    "settings", [settings_of(rank=4), EVENTS, settings_of(rank=4, solver="sgd")],
    ids=["ratings", "events", "sgd"],
)  # fmt: skip
def test_everyones_are_what_somebody_unknown_gets(settings, modeler, serving):
    run = serving(modeler(settings=settings))
    first = [one["item"] for one in run.get("/recommendations/999999", n=6)["items"]]
    for rank_by in ("everyone", "taste"):
        unknown = run.get("/recommendations/999999", n=6, rank_by=rank_by)["items"]
        assert [one["item"] for one in unknown] == first
    user = run.service.answers.holder
    with user.reading() as model:
        known = model.indexes[0].ids(np.array([5])).to_pylist()[0]
    asked = {"rank_by": "everyone", "exclude_seen": False}
    everyone = run.get(f"/recommendations/{known}", n=6, **asked)["items"]
    assert [one["item"] for one in everyone] == first
    one = run.get(f"/recommendations/{known}", n=6, items=first[2:4], **asked)["items"]
    assert [o["item"] for o in one] == first[2:4]
    one = run.get(f"/recommendations/{known}", n=4, exclude=first[:2], **asked)["items"]
    assert [o["item"] for o in one] == first[2:]
    own = run.get(f"/recommendations/{known}", n=1000, rank_by="taste", exclude_seen=False)
    assert [o["item"] for o in own["items"]][:6] != first
    assert all(np.isfinite(o["prediction"]) for o in own["items"])


def test_by_taste_few_ratings_decide_and_not_the_id(modeler, serving):
    """Features of new users start at small numbers drawn by their ids, which are nobody's taste."""
    made = modeler()
    users = [9_000_000 + n for n in range(6)]
    rows = [(u, i) for u in users for i in (2, 5)]
    table = pa.table({
        "user": pa.array([u for u, _ in rows]),
        "item": pa.array([made.key(1, i) for _, i in rows]),
        "rating": pa.array([5.0] * len(rows), pa.float32()),
    })  # fmt: skip
    made.learn(table)
    run = serving(made)
    with run.service.answers.holder.reading() as model:
        people = [person_of(model, user) for user in users]
        factors = model.candidates.factors[: model.settings.rank, : model.items.size]
        plain = np.corrcoef([p.mean[1:] @ factors for p in people])
        cleared = np.corrcoef([(p.mean[1:] - p.drawn) @ factors for p in people])
        assert cleared.min() > 0.95
        assert cleared.min() > plain.min()
        assert not nobody(model).drawn.size
        folded = fold_in(model, [made.key(1, 2), made.key(1, 5)], [5.0, 5.0])
        assert np.allclose(folded.learned, folded.mean[1:] - folded.drawn)
        told = run.get(f"/explain/{users[0]}/{made.key(1, 9)}")
        row = int(model.item_rows([made.key(1, 9)])[0])
        drawn = float(people[0].drawn @ model.items.mean[row, 1:]) * model.shell.scale.spread
        assert told["drawn"] == pytest.approx(drawn)
        alike = np.corrcoef((folded.mean[1:] - folded.drawn) @ factors,
                            (people[0].mean[1:] - people[0].drawn) @ factors)  # fmt: skip
        assert alike[0, 1] > 0.9
    lists = [
        [o["item"] for o in run.get(f"/recommendations/{u}", n=5, rank_by="taste")["items"]]
        for u in users
    ]
    assert all(len(set(one) & set(lists[0])) >= 3 for one in lists)


@given(
    st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 500),
    st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from([1.0, 4.0, 5.0]), st.floats(-1, 1))),
)  # fmt: skip
def test_a_sentence_names_the_largest_term_first(bias, features, count, because):
    because.sort(key=lambda one: -one[2])
    said = sentence(bias, features, count, 4.5, because)
    assert said[0].isupper()
    named = [f"{r:g} to {name}" for name, r, share in because[:3] if share > 0.15]
    hidden = [f"{r:g} to {name}" for name, r, share in because if share <= 0.15]
    assert all(one in said for one in named)
    assert not any(one in said for one in set(hidden) - set(named))
    people = said.find("people") if count > 1 else said.find("person" if count else "rated yet")
    assert people > 0
    if named:
        assert (said.find(named[0]) < people) == (features > bias)
    assert ("loved" in said.lower()) == (bias > 0.5 and count > 0)


def test_what_sentences_sound_like():
    assert sentence(0.8, 0.1, 160, 4.5, []) == "Loved by 160 people"
    assert sentence(0.8, 0.2, 160, 4.5, [("Heat", 5.0, 0.16), ("Big", 4.5, 0.1)]) == (
        "Loved by 160 people, and you gave 5 to Heat"
    )
    assert sentence(0.2, 0.6, 1, 4.5, [("Heat", 5.0, 0.4), ("Big", 4.5, 0.2)]) == (
        "Because you gave 5 to Heat and 4.5 to Big; liked by one person"
    )
    assert sentence(-0.4, 0.6, 12, 4.5, []) == (
        "Close to your taste; rated below most by 12 people"
    )
    # of a scale to 100 a share has to be as much more
    assert sentence(0.0, 1.0, 9, 100.0, [("Heat", 95.0, 1.0)]) == "Rated like most by 9 people"


def test_no_sentence_names_what_was_disliked(modeler, serving):
    made = modeler()
    with serving(made).service.answers.holder.reading() as model:
        person = person_of(model, made.key(0, 7))
        rated = np.arange(8)
        values = np.array([5, 2, 5, 2, 5, 2, 5, 2], np.float64)
        for row in range(8, 30):
            found = shares(model, person, rated, values, row)
            assert not any(one.liked for one in found if one.rating == 2)
            assert any(one.liked for one in found)
            for one in found:
                bias = float(person.mean[0] + model.items.mean[one.row, 0])
                expected = model.shell.scale.mean + bias * model.shell.scale.spread
                assert one.liked == (one.rating > max(expected, model.shell.scale.mean))


def test_of_events_what_says_most_is_said_first(modeler, serving):
    made = modeler(settings=replace(EVENTS, num_partners=0))
    with serving(made).service.answers.holder.reading() as model:
        person = person_of(model, made.key(0, 7))
        row = int(np.argmax(model.items.count))
        little = event_sentence(model, person, row, [("Heat", 0.01)])
        much = event_sentence(model, person, row, [("Heat", 50.0)])
    assert little.endswith("% of what is done now, and you did Heat")
    assert much.startswith("Because you did Heat; it is ")


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Matrix, The (1999)", "The Matrix"), ("Heat (1995)", "Heat"), ("Big", "Big"), ("", ""),
        ("Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "Amelie"),
        ("Good, the Bad and the Ugly, The (Buono, il brutto, il cattivo, Il) (1966)",
         "The Good, the Bad and the Ugly"),
        ("Auberge espagnole, L' (2002)", "L'Auberge espagnole"), ("M (1931)", "M"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer"), ("(2012)", "(2012)"),
        ("Ghost Busters (a.k.a. X) (Y) (1984)", "Ghost Busters"), ("Cells, AA", "Cells, AA"),
    ],
)  # fmt: skip
def test_titles_as_they_are_said(title, said):
    assert spoken(title) == said


def test_genres_are_read_beside_titles(tmp_path, modeler, serving):
    made = modeler()
    file = tmp_path / "films.csv"
    file.write_text(
        "movieId,title,genres\n"
        f'{made.key(1, 3)},"Matrix, The (1999)",Action| Sci-Fi |\n'
        f"{made.key(1, 4)},Heat (1995),(no genres listed)\n"
    )
    run = serving(made, titles=str(file))
    (found,) = run.get("/items", query="matrix")["items"]
    assert (found["title"], found["genres"]) == ("Matrix, The (1999)", ["Action", "Sci-Fi"])
    assert run.get("/items", query="heat")["items"][0]["genres"] == []
    listed = {o["item"]: o["genres"] for o in run.get("/popular", n=1000)["items"]}
    assert listed[made.key(1, 3)] == ["Action", "Sci-Fi"]
    assert sum(map(len, listed.values())) == 2
    lines = tmp_path / "films.jsonl"
    lines.write_text('{"id": 3, "name": "Heat", "genre": ["Crime", null, "Drama"]}\n')
    assert Titles.read(str(lines), "int").genres_of(3) == ["Crime", "Drama"]
