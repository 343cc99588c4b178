"""Pictures say what the numbers say: lines, labels, units and files are read back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sparkml_sgdals.plotting import (
    MatrixStep,
    calibration_table,
    plot_calibration,
    plot_errors,
    plot_factors,
    plot_matrix,
    plot_passes,
    plot_race,
    plot_ranks,
    plot_stream,
    save_film,
)
from sparkml_sgdals.plotting.style import place_labels


def words(figure):
    """All texts of a figure."""
    texts = []
    for axes in figure.axes:
        texts += [axes.get_title(), axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()]
        texts += [text.get_text() for text in axes.texts]
    return [text for text in texts if text]


@pytest.fixture
def metrics():
    return pd.DataFrame(
        {
            "ratings": [100, 200, 300],
            "rmse": [np.nan, 1.1, 1.0],
            "validationRmse": [1.2, 1.05, 0.95],
        }
    )


def test_stream_is_drawn_by_ratings_seen_with_the_batch_line(metrics):
    figure = plot_stream(metrics, {"ALS": 0.97})
    lines = figure.axes[0].lines
    np.testing.assert_array_equal(lines[1].get_xdata(), [100, 300, 600])
    np.testing.assert_array_equal(lines[1].get_ydata(), [1.2, 1.05, 0.95])
    assert set(lines[2].get_ydata()) == {0.97}
    said = words(figure)
    assert "stream: 0.9500" in said
    assert "ALS: 0.9700" in said
    assert any("units of the rating" in text for text in said)


def test_a_stream_s_line_lies_within_the_picture(metrics):
    axes = plot_stream(metrics, {"ALS": 0.97}).axes[0]
    low, high = axes.get_ylim()
    ends = [y for line in axes.lines[1:] for y in (min(line.get_ydata()), max(line.get_ydata()))]
    assert low < min(ends)
    assert max(ends) < high


def test_stream_takes_rmse_before_learning_over_a_tenth_of_the_batches(metrics):
    long = pd.DataFrame({"ratings": [1, 3] * 10, "rmse": [1.0, 2.0] * 10, "validationRmse": 1.5})
    drawn = plot_stream(long).axes[0].lines[0].get_ydata()
    # one of 1 rating and one of 3 together
    np.testing.assert_allclose(drawn[1:], np.sqrt((1 + 3 * 4) / 4))


def test_stream_without_held_out_ratings_shows_rmse_before_learning(metrics):
    figure = plot_stream(metrics.assign(validationRmse=np.nan))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [np.nan, 1.1, 1.0])


@pytest.mark.parametrize("what", ["empty", "missing", "nothing predicted"])
def test_stream_says_what_it_lacks(what, metrics):
    frame, said = {
        "empty": (metrics.iloc[:0], "no rows"),
        "missing": (metrics.drop(columns="rmse"), "'rmse'"),
        "nothing predicted": (metrics.assign(rmse=np.nan, validationRmse=np.nan), "no RMSE"),
    }[what]
    with pytest.raises(ValueError, match=said):
        plot_stream(frame)


def test_race_ends_a_dropped_candidate_where_it_was_dropped():
    race = pd.DataFrame(
        {
            "candidate": ["rank=8"] * 4 + ["rank=32"] * 4,
            "batch": [0, 1, 2, 3] * 2,
            "loss": [1.2, 1.1, 1.0, 0.9, 1.3, 1.25, 1.24, 1.23],
            "dropped_at": [None] * 4 + [2] * 4,
        }
    )
    figure = plot_race(race)
    kept, dropped, cross = figure.axes[0].lines
    np.testing.assert_array_equal(kept.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(dropped.get_xdata(), [0, 1, 2])
    assert (cross.get_marker(), list(cross.get_xdata())) == ("x", [2])
    assert kept.get_linestyle() != dropped.get_linestyle()
    said = words(figure)
    assert "rank=8: 0.9000" in said
    assert "rank=32, dropped" in said


def test_calibration_of_honest_deviations_lies_on_the_line():
    rng = np.random.default_rng(1)
    std = rng.uniform(0.5, 1.5, 200_000)
    table = calibration_table(std, rng.normal(0, std))
    assert table.ratings.sum() == 200_000
    np.testing.assert_allclose(table.ratio, 1.0, atol=0.03)
    assert (np.diff(table.stated) > 0).all()
    figure = plot_calibration(std, rng.normal(0, 2 * std))
    drawn = figure.axes[0].lines[1]
    np.testing.assert_allclose(drawn.get_ydata() / drawn.get_xdata(), 2.0, atol=0.06)


@pytest.mark.parametrize(
    ("std", "error", "said"),
    [
        ([1.0] * 10, [1.0] * 9, "alike"),
        ([1.0] * 3, [1.0] * 3, "3 ratings"),
        ([np.nan] * 10, [1.0] * 10, "not finite"),
    ],
)
def test_calibration_refuses_what_it_cannot_group(std, error, said):
    with pytest.raises(ValueError, match=said):
        calibration_table(std, error)


def model_of(features):
    table = pd.DataFrame(
        {"id": range(len(features)), "features": list(map(list, features)), "bias": 0.1}
    )
    return SimpleNamespace(itemFactors=SimpleNamespace(toPandas=lambda: table))


def test_factors_finds_the_plane_that_items_lie_in():
    rng = np.random.default_rng(2)
    plane = rng.normal(0, 1, (60, 2)) * [3.0, 1.0]
    turn = np.linalg.qr(rng.normal(0, 1, (5, 5)))[0][:2]
    figure = plot_factors(model_of(plane @ turn), {n: f"film {n}" for n in range(60)}, most=10)
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    centred = plane - plane.mean(axis=0)

    def apart(places):
        return np.linalg.norm(places[:, None] - places[None], axis=2)

    # distances are those of the plane, whichever way it is turned
    np.testing.assert_allclose(apart(drawn), apart(centred), atol=1e-6)
    named = [text.get_text() for text in figure.axes[0].texts]
    assert 1 <= len(named) <= 10
    farthest = int(np.argmax(np.hypot(*centred.T)))
    assert f"film {farthest}" in named


def test_factors_says_what_it_lacks():
    with pytest.raises(ValueError, match="2 items"):
        plot_factors(model_of(np.ones((2, 3))), {0: "a"})
    with pytest.raises(ValueError, match="No id of titles"):
        plot_factors(model_of(np.eye(3)), {"0": "a"})


@pytest.fixture
def steps():
    rng = np.random.default_rng(3)
    truth = rng.integers(1, 6, (30, 20)).astype(np.float32)
    als = [MatrixStep(f"iteration {n}", truth * 0 + n + 1, 0.9 - n / 10) for n in range(2)]
    ours = [MatrixStep(f"batch {n}", truth, 0.5) for n in range(3)]
    ours[0].matrix[:] = truth
    return truth, als, ours


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_film_has_a_frame_a_step_and_rests_on_the_last(suffix, steps, tmp_path):
    file = tmp_path / f"film{suffix}"
    assert save_film(file, *steps, seconds=0.2, last_seconds=1.0) == 3
    with Image.open(file) as film:
        assert (film.is_animated, film.n_frames) == (True, 3)
        times, shown = [], []
        for frame in range(3):
            film.seek(frame)
            film.load()
            times.append(film.info["duration"])
            shown.append(np.asarray(film.convert("RGB")).copy())
    assert times == [200, 200, 1000]
    # ALS moves once, the stream's label at every step
    assert not np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[1], shown[2])


def test_strip_shows_the_matrix_of_each_frame(steps):
    truth, als, ours = steps
    figure = plot_matrix(truth, als, ours, [0, 2])
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(images[0], als[0].matrix)
    # a method that has ended stays at its last step
    np.testing.assert_array_equal(images[1], als[1].matrix)
    np.testing.assert_array_equal(images[-1], truth)
    assert any("RMSE 0.800" in text for text in words(figure))


def test_film_and_strip_refuse_what_does_not_fit(steps, tmp_path):
    truth, als, ours = steps
    with pytest.raises(ValueError, match=r"\.gif or \.png"):
        save_film(tmp_path / "film.mp4", truth, als, ours)
    with pytest.raises(ValueError, match="no steps"):
        save_film(tmp_path / "film.gif", truth, [], ours)
    with pytest.raises(ValueError, match="shape"):
        plot_matrix(truth[:5], als, ours, [0])
    with pytest.raises(ValueError, match="frames is empty"):
        plot_matrix(truth, als, ours, [])


def test_labels_are_moved_apart_and_keep_their_order():
    placed = place_labels([1.0, 1.01, 5.0, 1.02], 0.5)
    assert placed[2] == 5.0
    np.testing.assert_allclose(sorted(placed[:2] + placed[3:]), [0.51, 1.01, 1.51])
    assert placed[0] < placed[1] < placed[3]
    assert place_labels([], 1.0) == []


def test_passes_are_drawn_from_the_first_on():
    figure = plot_passes([0.9, 0.8, 0.75], "100 ratings")
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [0.9, 0.8, 0.75])
    assert {"0.7500", "100 ratings", "pass over the ratings"} <= set(words(figure))
    with pytest.raises(ValueError, match="no passes to draw"):
        plot_passes([])


def test_errors_are_bars_with_their_values():
    figure = plot_errors({"ours": 0.5, "theirs": 0.75})
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.5, 0.75]
    # the first on top
    assert bars[0].get_y() > bars[1].get_y()
    assert {"0.5000", "0.7500"} <= set(words(figure))
    for errors in ({"ours": np.nan}, {}):
        with pytest.raises(ValueError, match="Give held-out ratings"):
            plot_errors(errors)


def test_ranks_are_means_over_what_was_ranked():
    table = pd.DataFrame({
        "ratings": [10] * 20, "ranked": [1, 3] * 10, "recall": [1.0, 0.5] * 10,
        "baselineRecall": [np.nan, *[0.25] * 19],
    })  # fmt: skip
    ours, theirs = plot_ranks(table).axes[0].lines
    assert ours.get_xdata()[-1] == 200
    assert ours.get_ydata()[-1] == pytest.approx((1 * 1.0 + 3 * 0.5) / 4)
    assert theirs.get_ydata()[-1] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="No batch was ranked"):
        plot_ranks(table.assign(ranked=0))
