"""Settings as they stand in a model path."""

from __future__ import annotations

import json

import pytest

from sparkml_sgdals.state.settings import Settings

OTHERS = Settings("minibatch", 3, 7, 0.1, -5, 0.2, (1.0, 2.0, 3.0, 4.0), 9, 0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.mark.parametrize("settings", [Settings(), OTHERS])
def test_through_json(settings: Settings) -> None:
    """Every field survives, and the tuple is one again."""
    back = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert back == settings
    assert hash(back) == hash(settings)


def test_unknown_names_raise() -> None:
    """A setting of a newer release is not dropped in silence."""
    with pytest.raises(TypeError, match="momentum"):
        Settings.from_json(Settings().to_json() | {"momentum": 0.9})
