"""What the package gives by its own name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from building import ratings_of, seen_state, settings_of

import sparkml_sgdals
from sparkml_sgdals import Diagnosis, DivergenceError, LeaseError, StorageError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.diagnosis import diagnose_state
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.version_store import VersionStore


@pytest.mark.parametrize("name", sparkml_sgdals.__all__)
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(sparkml_sgdals, name)
    assert name in dir(sparkml_sgdals)
    home = f"sparkml_sgdals.{sparkml_sgdals._HOME[name]}"
    # what is saved names the class by its public path
    assert found.__module__ in (home, "sparkml_sgdals")
    assert getattr(import_module(home), name) is found


def test_names_and_homes_are_the_same() -> None:
    assert sorted(sparkml_sgdals._HOME) == sorted(sparkml_sgdals.__all__)


def test_others_are_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Settings'"):
        _ = sparkml_sgdals.Settings


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_they_are_what_is_raised_and_returned(tmp_path: Path) -> None:
    store, state = VersionStore(str(tmp_path)), seen_state(settings_of(rank=2))
    with pytest.raises(StorageError, match="does not hold"):
        store.load()
    Lease.acquire(store, 30.0)
    with pytest.raises(LeaseError, match="Stop that stream"):
        Lease.acquire(store, 30.0)
    with pytest.raises(DivergenceError, match="not finite"):
        learn_batch(state, ratings_of([-100] * 3, [0, 0, 3], [3e38, -3e38, 3e38]))
    assert type(diagnose_state(state, None, 1)) is Diagnosis
