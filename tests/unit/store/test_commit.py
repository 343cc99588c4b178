"""Which formats are read: the present one to the bit, no other, whoever reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from formats import OLDER, PRESENT, REFUSED, as_format, digest, rewrite

from sparkml_sgdals import Predictor, StreamingBiasedALSModel
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.commit import FORMAT_VERSION, Commit
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.saved_model import read_saved
from sparkml_sgdals.store.version_store import VersionStore

READERS: dict[str, Callable[[str], object]] = {
    "meta": lambda path: VersionStore(path).meta(),
    "newest": lambda path: VersionStore(path).newest(),
    "read_commit": lambda path: VersionStore(path).read_commit(1),
    "load": lambda path: VersionStore(path).load(),
    "load a version": lambda path: VersionStore(path).load(1),
    "metrics": lambda path: VersionStore(path).metrics(),
    "forget": lambda path: forget_users(VersionStore(path), pa.array(["u1"])),
    "versions": StreamingBiasedALSModel.versions,
    "rollback": lambda path: StreamingBiasedALSModel.rollback(path, 1),
    "resumeStream": lambda path: StreamingBiasedALSModel.resumeStream(None, path),
    "Predictor": Predictor.load,
    "a version by Predictor": lambda path: Predictor.load(path, 1),
}
FINGERPRINTS = {
    ("path", 0): "0a9bcd1756eeef986f9b5bea52b7d122d7631999e6f14f9e9a8f15c9d6e80a32",
    ("path", 1): "eea6915341dbb65fbb933888723e1b6cab4013832ce8dbd48f4dc95326ba0d63",
    ("path", 2): "b1e00fdd47ebc15a08da6b642cd0925ef7e4cc601bbd51ea630de913bb7c6b98",
    ("runs", 0): "93669255c90d66d7fa864f469ee64864f74a8784031c9bdcec8bca0c238daf87",
    ("runs", 1): "1ac6820791c8b0c61c023bfc2b95d4dfd43707ed853f62cd17abaf95c4e91556",
    ("runs", 2): "673f4e0b897fc6af4a4b5f424eb21c29546951cc5564c70a4bee9526b97b529f",
}


@pytest.mark.parametrize("place", FINGERPRINTS, ids=str)
def test_a_path_of_the_present_format_loads_to_the_bit(place: tuple[str, int]) -> None:
    """Nothing is learned here, so the bits are the same on every machine."""
    state, commit = VersionStore(str(PRESENT / place[0])).load(place[1])
    assert state.fingerprint() == FINGERPRINTS[place]
    assert commit.ids == [state.users.size, state.items.size]


def test_a_saved_model_of_the_present_format_loads_to_the_bit() -> None:
    """The stream `runs` started from it."""
    state = read_saved(str(PRESENT / "model")).state
    assert state.fingerprint() == FINGERPRINTS["runs", 0]


@pytest.mark.parametrize("number", OLDER)
@pytest.mark.parametrize("reader", READERS)
def test_an_older_path_is_refused_and_left_alone(tmp_path: Path, reader: str, number: int) -> None:
    """By one sentence that names the place, the format and what to do."""
    path = as_format(number, "path", tmp_path / "model")
    before = digest(path)
    with pytest.raises(StorageError, match=REFUSED.format(number)) as raised:
        READERS[reader](str(path))
    assert str(path) in str(raised.value)
    assert digest(path) == before


@pytest.mark.parametrize("number", OLDER)
@pytest.mark.parametrize("reader", [read_saved, Predictor.load])
def test_an_older_saved_model_is_refused(
    tmp_path: Path, reader: Callable[[str], object], number: int
) -> None:
    """By the same sentence."""
    path = as_format(number, "model", tmp_path / "model")
    with pytest.raises(StorageError, match=REFUSED.format(number)) as raised:
        reader(str(path))
    assert f"The model at {path} has" in str(raised.value)


@pytest.mark.parametrize("number", OLDER)
def test_an_older_commit_under_a_present_path_is_refused(tmp_path: Path, number: int) -> None:
    """The sentence names the commit object; it is not taken for one broken off."""
    path = as_format(number, "path", tmp_path / "model")
    rewrite(path / "model.json", format=FORMAT_VERSION)
    store = VersionStore(str(path))
    sentence = rf"The commit .*/commits/0{{11}}2\.json {REFUSED.format(number)}"
    for read in (store.newest, store.load):
        with pytest.raises(StorageError, match=sentence):
            read()
    whole = Commit.from_bytes((PRESENT / "path/commits/000000000002.json").read_bytes(), "there")
    assert whole is not None
    with pytest.raises(StorageError, match=sentence):
        store.put_commit(whole, new=True)


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    """Of a path, a commit and a saved model."""
    newer = FORMAT_VERSION + 1
    sentence = f"has format {newer}, this release reads format {FORMAT_VERSION}: upgrade sparkml"
    path = as_format(newer, "path", tmp_path / "path")
    saved = as_format(newer, "model", tmp_path / "saved")
    store = VersionStore(str(path))
    for read in (
        store.meta, store.newest, lambda: read_saved(str(saved)),
        lambda: Predictor.load(str(saved)), lambda: Predictor.load(str(path)),
    ):  # fmt: skip
        with pytest.raises(StorageError, match=sentence):
            read()


@pytest.mark.parametrize("said", [None, "3", [3]])
def test_a_format_that_is_no_number_is_damage(tmp_path: Path, said: object) -> None:
    """Of a saved model as of model.json."""
    saved = Path(shutil.copytree(PRESENT / "model", tmp_path / "saved"))
    (part,) = (saved / "metadata").glob("part-*")
    rewrite(part, formatVersion=said)
    with pytest.raises(StorageError, match="is damaged"):
        read_saved(str(saved))
    fields = json.loads(part.read_text())
    del fields["formatVersion"]
    part.write_text(json.dumps(fields))
    with pytest.raises(StorageError, match="is damaged: 'formatVersion'"):
        read_saved(str(saved))
