"""How tables are read and spread, as the Params say."""

from __future__ import annotations

import pytest

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.ml.fit_options import fit_options, stream_invalid


def options_of(**params):
    als = StreamingBiasedALS(**params)
    return fit_options(als, ("int", "int"), "error", als.settings())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"repeatedPairs": "newest"}, "repeatedPairs is 'newest', and without times"),
        ({"implicitPrefs": True, "forgetUsersAfter": "3 days"}, "forgetUsersAfter is a time, and"),
    ],
)
def test_what_needs_times_asks_for_them(params, message):
    with pytest.raises(ValueError, match=message + ".*set timestampCol"):
        options_of(**params)
    assert options_of(**params, timestampCol="time").columns.time == "time"


def test_ratings_have_a_range_and_the_newest_of_a_pair():
    found = options_of(ratingRange=(1.0, 5.0), repeatedPairs="newest", timestampCol="time")
    assert (found.rating_range, found.newest) == ((1.0, 5.0), True)
    found = options_of(ratingRange=(1.0, 5.0))
    assert (found.rating_range, found.newest) == ((1.0, 5.0), False)


def test_events_have_no_range():
    assert options_of(implicitPrefs=True, ratingRange=(1.0, 5.0)).rating_range is None


def test_models_of_events_lie_in_memory_whole():
    assert options_of(maxResidentIds=7).max_resident_ids == 7
    assert options_of(maxResidentIds=7, implicitPrefs=True).max_resident_ids == 0
    # ranked among all items, unless somebody asks
    assert options_of(rankingSize=5).max_resident_ids == 0
    assert options_of(rankingSize=5, maxResidentIds=7).max_resident_ids == 7


def test_events_need_no_column_of_ratings():
    assert options_of().columns.rating_needed
    assert not options_of(implicitPrefs=True).columns.rating_needed
    assert options_of(implicitPrefs=True, ratingCol="stars").columns.rating_needed


def test_a_stream_goes_on_past_bad_rows_unless_it_is_told():
    assert stream_invalid(StreamingBiasedALS()) == "skip"
    assert stream_invalid(StreamingBiasedALS(handleInvalid="error")) == "error"
