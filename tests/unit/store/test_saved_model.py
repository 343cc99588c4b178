"""A saved model, read without Spark: whatever is changed of its files is named, or does nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import id_array, settings_of
from damaging import CHANGES, change, tally
from formats import PRESENT
from writing import Writer

from sparkml_sgdals import Predictor
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.learn.event_tables import fit_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.saved_model import (
    SavedModel,
    described,
    read_saved,
    refuse_model_path,
    sealed,
)

CLASS = "sparkml_sgdals.StreamingBiasedALSModel"
SETTINGS: dict[str, Settings] = {
    "bayes": settings_of(rank=3),
    "without prior means": settings_of(rank=2, implicit_prior=False),
    "sgd": settings_of(rank=2, solver="sgd"),
    "ranked": settings_of(rank=2, ranking_size=5),
    "events": settings_of(rank=2, learns_events=True, num_negatives=3),
    "isgd": settings_of(rank=2, learns_events=True, solver="isgd"),
    "fitted": settings_of(rank=2, learns_events=True, num_negatives=3, table_rank=3, max_iter=3),
}
CHUNKS = range(3)
FURTHER = range(3, 6)
MORE = range(100, 160)
EACH = 50
"""changes of a chunk"""


def learned(settings: Settings, strings: bool, seed: int = 7) -> ModelState:
    """Return a model of 200 ratings that all seeds share."""
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 25, 200), rng.integers(0, 15, 200)
    names = [f"ü{n}" for n in users] if strings else users
    ratings = np.ones(200) if settings.learns_events else np.round(rng.uniform(1, 5, 200))
    columns = {"user": id_array(names), "item": id_array(items)}
    columns |= {"rating": pa.array(ratings, pa.float32()), "time": pa.array(np.arange(200))}
    state = ModelState.empty(replace(settings, seed=seed), "str" if strings else "int", "int")
    table = encode_ratings(pa.table(columns))
    if settings.fits_events:
        return fit_events(state, replace(table, timed=True), [3], 1, lambda *_: None)[0][0]
    learn_batch(state, table)
    return state


def save(state: ModelState, path: Path, files: int = 2, **params: Any) -> None:
    """Write what `ml.persistence` does, users in several files."""
    spark = {
        "class": CLASS, "timestamp": 1795490086240, "sparkVersion": "4.3.0", "uid": "ALS_1",
        "paramMap": params, "defaultParamMap": {"coldStartStrategy": "bias", "numThreads": 0},
    }  # fmt: skip
    types = ("string" if state.users.index.kind == "str" else "int", "bigint")
    fields = spark | described(state, types, 4)
    for name, side in (("users", state.users), ("items", state.items)):
        table, cut = side.to_arrow(), -(-max(1, side.size) // files)
        for number in range(files):
            part = path / name / f"part-{number:05d}-c000.snappy.parquet"
            part.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(number * cut, cut), part, write_page_checksum=True)
    write_metadata(path, sealed(json.dumps(fields)))
    for name in ("users", "items", "metadata"):
        (path / name / "_SUCCESS").touch()


def write_metadata(path: Path, text: str) -> None:
    (path / "metadata").mkdir(exist_ok=True)
    (path / "metadata" / "part-00000-c000.txt").write_text(text + "\n", encoding="utf-8")


def metadata_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "metadata/part-00000-c000.txt").read_text())
    return found


def assert_same(found: SavedModel, wanted: SavedModel) -> None:
    """Every number of the state, every Param, and all that is said of it besides."""
    assert found.metadata == wanted.metadata
    assert found.params == wanted.params
    assert found.state.fingerprint() == wanted.state.fingerprint()
    assert found.state.settings == wanted.state.settings
    assert found.state.users.to_arrow().equals(wanted.state.users.to_arrow())
    assert found.state.items.to_arrow().equals(wanted.state.items.to_arrow())


def refused(path: Path) -> str | None:
    """What the error says that names the path; another error than StorageError fails."""
    try:
        read_saved(str(path))
    except StorageError as failure:
        return str(failure)
    return None


def is_named(said: str, path: Path) -> bool:
    """Whether an error says which file or folder it is, what is wrong and the remedy."""
    missing = f"There is no readable model at {path}: look whether" in said
    return missing or (f"{path}/" in said and " is damaged: " in said and "Restore it" in said)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two saved models of each kind, the second learned from the same ratings by another seed."""
    top = tmp_path_factory.mktemp("saved")
    found = []
    for number, (name, settings) in enumerate(SETTINGS.items()):
        for seed in (7, 8):
            path = top / f"{name} {seed}"
            save(learned(settings, number % 2 == 0, seed), path, userCol="who", rank=seed)
            found.append(path)
    return found


@pytest.mark.parametrize(
    "chunk",
    [
        *CHUNKS,
        *(pytest.param(n, marks=pytest.mark.long) for n in FURTHER),
        *(pytest.param(n, marks=pytest.mark.nightly) for n in MORE),
    ],
)
def test_any_change_of_a_file_is_named_or_does_nothing(
    models: list[Path], tmp_path: Path, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(chunk)
    outcomes: Counter[tuple[str, str]] = Counter()
    for _ in range(EACH):
        source = rng.choice(models)
        twin = source.with_name(source.name[:-1] + ("8" if source.name.endswith("7") else "7"))
        others = [twin, twin, rng.choice([path for path in models if path != source])]
        path = tmp_path / "model"
        shutil.copytree(source, path)
        told = change(rng, path, others)
        kind = next(k for k in sorted(CHANGES, key=len, reverse=True) if told.startswith(k))
        said = refused(path)
        assert said is None or is_named(said, path), f"{told} of {source.name}: {said}"
        if said is None:
            assert_same(read_saved(str(path)), read_saved(str(source)))
        outcomes[kind, "no effect" if said is None else "named"] += 1
        shutil.rmtree(path)
    record_property("outcomes", tally(outcomes))
    print(tally(outcomes))
    assert sum(outcomes.values()) == EACH
    assert sum(n for (_, how), n in outcomes.items() if how == "named") > EACH / 2


def changed(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value[:-1] + ("x" if value[-1:] != "x" else "y")
    return [1] if value is None else value + 1


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all that is in a JSON value, containers included."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*place, key))


@pytest.mark.parametrize("name", SETTINGS)
def test_whatever_the_metadata_say_is_covered(
    models: list[Path], tmp_path: Path, name: str
) -> None:
    """Each value changed and each field left out, in a text that is well-formed."""
    path = Path(shutil.copytree(next(m for m in models if m.name == f"{name} 7"), tmp_path / "m"))
    whole, tried = metadata_of(path), 0
    for place in leaves(whole):
        for way in ("other", "gone"):
            fields = json.loads(json.dumps(whole))
            holder = fields
            for key in place[:-1]:
                holder = holder[key]
            if way == "gone":
                del holder[place[-1]]
            elif isinstance(holder[place[-1]], dict | list):
                continue
            else:
                holder[place[-1]] = changed(holder[place[-1]])
            write_metadata(path, json.dumps(fields))
            with pytest.raises(StorageError, match=r"/metadata is damaged: .*Restore it"):
                read_saved(str(path))
            tried += 1
    assert tried > 150
    write_metadata(path, json.dumps(whole, indent=None, sort_keys=True))
    read_saved(str(path))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("side", ["users", "items"])
def test_whatever_is_stored_of_an_id_is_covered(
    models: list[Path], tmp_path: Path, name: str, side: str
) -> None:
    """One number of each column changed, in files that are well-formed."""
    path = Path(shutil.copytree(next(m for m in models if m.name == f"{name} 7"), tmp_path / "m"))
    part = path / side / "part-00001-c000.snappy.parquet"
    table, tried = pq.read_table(part), []
    for column in table.column_names:
        values = table.column(column).to_pylist()
        if isinstance(values[0], list):
            row = next((n for n, value in enumerate(values) if value), None)
            if row is None:
                continue
            values[row][-1] = changed(values[row][-1])
        else:
            values[0] = changed(values[0])
        place = table.column_names.index(column)
        other = pa.array(values, table.schema.field(column).type)
        pq.write_table(table.set_column(place, column, other), part)
        with pytest.raises(StorageError, match=rf"/{side} is damaged: column .*{column}"):
            read_saved(str(path))
        tried.append(column)
    assert {"id", "mean", "base_mean", "base_variance", "evidence", "noise_factor"} < set(tried)
    assert ("done" in tried) == (side == "users" and name in ("ranked", "events", "isgd", "fitted"))
    counted = ("events", "isgd", "fitted") if side == "items" else ("events", "fitted")
    assert ("last" in tried) == (name in counted)
    assert ("taste" in tried) == (name == "fitted")
    pq.write_table(table, part)
    read_saved(str(path))


@pytest.mark.parametrize("gone", ["fingerprint", "contents", "sha256"])
def test_half_a_seal_is_damage(models: list[Path], tmp_path: Path, gone: str) -> None:
    path = Path(shutil.copytree(models[0], tmp_path / "m"))
    fields = {name: value for name, value in metadata_of(path).items() if name != gone}
    if gone == "sha256":
        write_metadata(path, json.dumps(fields))
    else:
        del fields["sha256"]
        write_metadata(path, sealed(json.dumps(fields)))
    with pytest.raises(StorageError, match=f"/metadata is damaged: it lacks {gone}"):
        read_saved(str(path))


def test_another_fingerprint_is_named(models: list[Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(models[0], tmp_path / "m"))
    fields = {name: value for name, value in metadata_of(path).items() if name != "sha256"}
    write_metadata(path, sealed(json.dumps(fields | {"fingerprint": "0" * 64})))
    with pytest.raises(StorageError, match=f"{path} is damaged: its fingerprint"):
        read_saved(str(path))


def test_a_column_that_came_later_has_no_digest(models: list[Path], tmp_path: Path) -> None:
    """A release that remembers more of an id, or less, reads what another one saved."""
    path = Path(shutil.copytree(models[0], tmp_path / "m"))
    fields = {name: value for name, value in metadata_of(path).items() if name != "sha256"}
    wanted = read_saved(str(models[0])).state.fingerprint()
    for name in ("evidence", "rumour"):
        said = dict(fields["contents"]["users"])
        said |= {name: "0" * 64} if name == "rumour" else {}
        said = {column: said[column] for column in said if column != "evidence"}
        contents = fields["contents"] | {"users": said}
        other = fields | {"contents": contents, "fingerprint": "1" * 64}
        write_metadata(path, sealed(json.dumps(other)))
        assert read_saved(str(path)).state.fingerprint() == wanted


@pytest.mark.parametrize("files", [1, 7])
def test_files_may_be_cut_otherwise(models: list[Path], tmp_path: Path, files: int) -> None:
    state = read_saved(str(models[0])).state
    save(state, tmp_path / "m", files=files, userCol="who", rank=7)
    again = read_saved(str(tmp_path / "m"))
    assert_same(again, read_saved(str(models[0])))


def test_numbers_of_numpy_and_an_empty_model(tmp_path: Path) -> None:
    """They are told as JSON has them; negative zeros are kept."""
    state = learned(SETTINGS["bayes"], True)
    state.noise, state.noise_weight = np.float64(0.3), np.float64(7)
    state.users.mean[:2, :2] = -0.0
    save(state, tmp_path / "m")
    found = read_saved(str(tmp_path / "m")).state
    assert found.noise == 0.3
    assert np.signbit(found.users.mean[:2, :2]).any()
    save(ModelState.empty(SETTINGS["events"], "str", "int"), tmp_path / "empty")
    assert read_saved(str(tmp_path / "empty")).state.blank


def test_what_was_saved_without_digests_loads_and_pages_are_checked(tmp_path: Path) -> None:
    """Of its changes those that Spark's checksums of pages see are named; none is a bare error."""
    golden = PRESENT / "model"
    assert "fingerprint" not in read_saved(str(golden)).metadata
    rng, named = random.Random(3), 0
    for _ in range(60):
        path = Path(shutil.copytree(golden, tmp_path / "m"))
        change(rng, path, [golden], hidden=False)
        named += bool(refused(path))
        shutil.rmtree(path)
    assert named > 30


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "null", "{}", '{"class": 3}', f'{{"class": "{CLASS}"}}', "\u0085", "nan"],
)
def test_other_texts_in_the_place_of_metadata(
    models: list[Path], tmp_path: Path, text: str
) -> None:
    path = Path(shutil.copytree(models[0], tmp_path / "m"))
    write_metadata(path, text)
    for read in (read_saved, Predictor.load):
        with pytest.raises(StorageError, match="/metadata is damaged"):
            read(str(path))


def test_a_model_path_is_nothing_to_save_to(tmp_path: Path) -> None:
    """Whole, without its model.json, and where its commits are damaged."""
    writer = Writer(tmp_path / "path")
    writer.learn()
    refuse_model_path(str(tmp_path / "elsewhere"))
    refuse_model_path("nowhere://that/pyarrow/knows")
    for damage in (lambda: None, (writer.path / "model.json").unlink):
        damage()
        with pytest.raises(StorageError, match=r"model path of a stream.*Save to another path"):
            refuse_model_path(str(writer.path))
