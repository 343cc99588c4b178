"""The pyfunc of a logged model, as MLflow runs it from this file: no Spark in it."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from sparkml_sgdals.predictor import Predictor


class _Pyfunc(PythonModel):  # type: ignore[misc, unused-ignore]
    """Predicts pairs, or recommends where there are users alone: see `mlflow.log_model`."""

    def load_context(self, context: Any) -> None:
        self._predictor = Predictor.load(context.artifacts["sparkml_sgdals"])
        self._names = context.model_config

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        user, item = self._names["userCol"], self._names["itemCol"]
        if item in model_input:
            return self._predictor.predict(model_input[user], model_input[item])
        found = self._predictor.recommend(model_input[user], (params or {}).get("n", 10))
        return found.rename(columns={"user": user, "item": item})


mlflow.models.set_model(_Pyfunc())
