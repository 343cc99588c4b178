"""The comparisons that other tests rest on fail where they have to: NaN, length, order, type."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from building import settings_of
from chispa import assert_df_equality
from chispa.dataframe_comparer import DataFramesNotEqualError
from chispa.schema_comparer import SchemasNotEqualError
from helpers import assert_same_bits, factors, predictions, rmse

from sparkml_sgdals import StreamingBiasedALSModel
from sparkml_sgdals.state.model_state import ModelState

NAN = float("nan")


def model_of(means, ids=(1, 2), kind="int", variance=0.1, count=3):
    """A model whose users have these means (bias and one feature), and which has one item."""
    state = ModelState.empty(settings_of(rank=1), kind, "int")
    means = np.array(means, np.float32).reshape(-1, 2)
    base = np.zeros((len(means), 1), np.float32)
    state.users.put(
        pa.array(list(ids)),
        {"mean": means, "var": variance, "base_mean": base, "base_var": 0.2, "count": count},
    )
    ones = np.ones((1, 2), np.float32)
    state.items.put(
        pa.array([7]), {"mean": ones, "var": ones, "base_mean": 0, "base_var": 0, "count": 1}
    )
    return StreamingBiasedALSModel(state)


PLAIN = [0.5, 1.0, 1.5, 2.0]
ONE_NAN = [0.5, NAN, 1.5, 2.0]


class TestSameBits:
    def test_equal_whatever_the_order_of_rows(self):
        assert_same_bits(model_of(PLAIN), model_of(PLAIN))
        assert_same_bits(model_of(PLAIN), model_of([1.5, 2.0, 0.5, 1.0], ids=(2, 1)))

    @pytest.mark.parametrize(
        "other",
        [
            model_of(ONE_NAN),
            model_of(PLAIN, variance=NAN),
            model_of(PLAIN[:2], ids=(1,)),
            model_of([*PLAIN, 0.0, 0.0], ids=(1, 2, 3)),
            model_of([1.5, 2.0, 0.5, 1.0]),
            model_of(PLAIN, ids=(1, 3)),
            model_of(PLAIN, ids=("1", "2"), kind="str"),
            model_of([0.5, np.nextafter(np.float32(1.0), np.float32(2.0)), 1.5, 2.0]),
            model_of([0.0, 1.0, 1.5, 2.0]),
            model_of(PLAIN, count=4),
        ],
        ids=["nan", "nan variance", "shorter", "longer", "order", "id", "strings", "one bit",
             "zero", "count"],
    )  # fmt: skip
    def test_different(self, other):
        with pytest.raises(AssertionError):
            assert_same_bits(model_of(PLAIN), other)
        with pytest.raises(AssertionError):
            assert_same_bits(other, model_of(PLAIN))

    def test_the_sign_of_zero_is_a_bit(self):
        with pytest.raises(AssertionError):
            assert_same_bits(model_of([0.0, 1.0, 1.5, 2.0]), model_of([-0.0, 1.0, 1.5, 2.0]))

    def test_nan_in_both(self):
        """A model must not hold NaN, so two that do are not the same but broken."""
        with pytest.raises(AssertionError, match="a mean of users is not finite"):
            assert_same_bits(model_of(ONE_NAN), model_of(ONE_NAN))
        with pytest.raises(AssertionError, match="a variance of users is not finite"):
            factors(model_of(PLAIN, variance=math.inf))

    @pytest.mark.parametrize("noise", [0.7, NAN])
    def test_scalars(self, noise):
        one, other = model_of(PLAIN), model_of(PLAIN)
        other.state.noise = noise
        with pytest.raises(AssertionError):
            assert_same_bits(one, other)
        one.state.noise = float(noise)
        if math.isnan(noise):
            other.state.noise = float("nan")
            with pytest.raises(AssertionError):
                assert_same_bits(one, other)
        else:
            assert_same_bits(one, other)


class TestOnSpark:
    @staticmethod
    def frame(spark, values, keys=None):
        keys = range(len(values)) if keys is None else keys
        return spark.createDataFrame(
            list(zip(keys, values, strict=True)), "key int, prediction float"
        )

    def test_predictions(self, spark):
        found = predictions(self.frame(spark, [3.0, 1.0, 2.0], [2, 0, 1]), ["key"])
        np.testing.assert_array_equal(found, [1.0, 2.0, 3.0])
        other = predictions(self.frame(spark, [3.0, 1.0, 2.0]), ["key"])
        shorter = predictions(self.frame(spark, [1.0]), ["key"])
        for wrong in (other, shorter, found[:2]):
            with pytest.raises(AssertionError):
                np.testing.assert_array_equal(found, wrong, strict=True)

    def test_predictions_with_nan(self, spark):
        """NumPy takes two NaN for equal, so one has to be asked for; a null never counts as one."""
        holed = self.frame(spark, [1.0, NAN])
        with pytest.raises(AssertionError, match="prediction is NaN"):
            predictions(holed, ["key"])
        with pytest.raises(AssertionError):
            np.testing.assert_array_equal(predictions(holed, ["key"], nan=True), [1.0, 2.0])
        np.testing.assert_array_equal(predictions(holed, ["key"], nan=True), [1.0, NAN])
        for nan in (False, True):
            with pytest.raises(AssertionError, match="prediction is null"):
                predictions(self.frame(spark, [1.0, None]), ["key"], nan=nan)

    def test_rmse(self, spark):
        model = model_of(PLAIN)
        held = pd.DataFrame({"user": [1, 2], "item": [7, 7], "rating": [2.5, 4.5]})
        # 0.5 + 1 + 1 * 1 = 2.5 and 1.5 + 1 + 2 * 1 = 4.5
        assert rmse(model, held, spark) == 0.0
        assert rmse(model, held.assign(rating=[2.5, 5.5]), spark) == pytest.approx(0.5**0.5)
        unknown = pd.concat([held, held.assign(user=9)])
        for strategy, message in (("nan", "is NaN"), ("drop", "4 rows became 2")):
            model.setColdStartStrategy(strategy)
            with pytest.raises(AssertionError, match=message):
                rmse(model, unknown, spark)
        with pytest.raises(AssertionError, match="is NaN"):
            rmse(model, held.assign(rating=[2.5, NAN]), spark)


class TestChispa:
    """`assert_df_equality` as the tests use it: `ignore_row_order` and nothing else."""

    frame = staticmethod(TestOnSpark.frame)

    def test_equal(self, spark):
        one, other = self.frame(spark, [1.0, 2.0]), self.frame(spark, [2.0, 1.0], [1, 0])
        assert_df_equality(one, other, ignore_row_order=True)
        with pytest.raises(DataFramesNotEqualError):
            assert_df_equality(one, other)

    @pytest.mark.long
    @pytest.mark.parametrize(
        "values",
        [[1.0, NAN], [1.0, None], [1.0, 2.5], [1.0], [1.0, 2.0, 2.0], [2.0, 1.0]],
        ids=["nan", "null", "value", "shorter", "longer", "order"],
    )
    def test_different(self, spark, values):
        one, other = self.frame(spark, [1.0, 2.0]), self.frame(spark, values)
        for left, right in ((one, other), (other, one)):
            with pytest.raises(DataFramesNotEqualError):
                assert_df_equality(left, right, ignore_row_order=True)

    @pytest.mark.long
    @pytest.mark.parametrize("value", [None, 2.0])
    def test_nan_in_one_or_both(self, spark, value):
        holed = self.frame(spark, [1.0, NAN])
        for other in (holed, self.frame(spark, [1.0, value])):
            with pytest.raises(DataFramesNotEqualError):
                assert_df_equality(holed, other, ignore_row_order=True)

    def test_schema(self, spark):
        one = self.frame(spark, [1.0, 2.0])
        with pytest.raises(SchemasNotEqualError):
            assert_df_equality(one, one.selectExpr("key", "cast(prediction as double) prediction"))

    def test_arrays_are_exact(self, spark):
        """Factors are compared as arrays of NumPy: chispa knows no tolerance inside a column."""
        one = spark.createDataFrame([([1.0, NAN],)], "features array<float>")
        other = spark.createDataFrame([([1.0, 2.0],)], "features array<float>")
        for left, right in ((one, other), (other, one), (one, one)):
            with pytest.raises(DataFramesNotEqualError):
                assert_df_equality(left, right)
