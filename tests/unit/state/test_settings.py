"""Settings as they stand in a model path."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields

import pytest
from building import settings_of

from sparkml_sgdals.state.settings import Settings

OTHERS = Settings(
    "minibatch", 3, 7, 0.1, -5, 0.2, (1.0, 2.0, 3.0, 4.0), 9, 0.3, 0.4, 0.5, 0.6, 0.7, True, True,
    0.8, 4, 5, 6, 7, 0.3, 8, None, True, 9, 10, True,
)  # fmt: skip


@pytest.mark.parametrize("settings", [settings_of(), OTHERS])
def test_through_json(settings: Settings) -> None:
    """Every field survives, and the tuple is one again."""
    back = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert back == settings
    assert hash(back) == hash(settings)


def test_unknown_names_raise() -> None:
    """A setting of a newer release is not dropped in silence."""
    with pytest.raises(TypeError, match="momentum"):
        Settings.from_json(settings_of().to_json() | {"momentum": 0.9})


def test_missing_names_raise() -> None:
    """No default stands in for what a model was learned with."""
    values = settings_of().to_json()
    del values["noise"]
    with pytest.raises(TypeError, match="noise"):
        Settings.from_json(values)


def test_no_defaults() -> None:
    """The Params have them."""
    assert all(f.default is f.default_factory is MISSING for f in fields(Settings))


def test_those_of_a_model_of_ratings_that_ranks_nothing() -> None:
    """Files lack what came after them."""
    values = settings_of().to_json()
    for name in (
        "positive", "alpha", "num_negatives", "ranking_size", "ranking_sample", "table_rank",
        "unobserved_weight", "num_partners", "repeat_items",
    ):  # fmt: skip
        del values[name]
    assert Settings.from_json(values) == settings_of()


def test_names_in_files_stay() -> None:
    """Model paths and saved models that exist have them."""
    assert list(settings_of().to_json()) == [
        "solver", "rank", "max_iter", "tol", "seed", "step_size", "regs", "block_size",
        "bias_prior", "factor_prior", "noise", "init_std", "drift", "implicit_prior", "positive",
        "alpha", "num_negatives", "ranking_size", "ranking_sample", "table_rank",
        "unobserved_weight", "num_partners", "repeat_items",
    ]  # fmt: skip
