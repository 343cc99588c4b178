"""MLflow: log a model, load it for Spark again, and as a pyfunc that needs no Spark (driver).

Needs the extra `mlflow`. What is logged is a model path of one version, so Parquet and JSON: no
pickle. The pyfunc is code of this package (`mlflow.pyfunc`), logged as a file.
"""

from __future__ import annotations

import importlib.util
import tempfile
import uuid
from pathlib import Path
from typing import Any, Final

import mlflow
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from sparkml_sgdals import __version__
from sparkml_sgdals.ml.model import StreamingBiasedALSModel
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["load_model", "log_model"]

_ARTIFACT: Final = "sparkml_sgdals"


def log_model(model: StreamingBiasedALSModel, name: str = "model", **options: Any) -> ModelInfo:
    """Log a model to the active MLflow run, which is started where there is none.

    Parameters
    ----------
    model : StreamingBiasedALSModel
        the model, as it is now
    name : str
        of the logged model
    **options : Any
        more for `mlflow.pyfunc.log_model`, such as `registered_model_name`

    Notes
    -----
    The pyfunc takes a DataFrame with the model's userCol and itemCol and gives `prediction` and
    `std` (see `Predictor.predict`). Without itemCol it gives the `n` best items of each user
    (`Predictor.recommend`), n being a parameter, 10 unless given.
    """
    state = model.state
    kinds = state.users.index.kind, state.items.index.kind
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{_ARTIFACT}"
        identity = {
            "settings": state.settings.to_json(), "kinds": list(kinds), "pathId": uuid.uuid4().hex,
            "origin": state.fingerprint(),
        }  # fmt: skip
        VersionStore(path).create(state, model._meta() | identity)
        given: dict[str, Any] = {
            "signature": _signature(model, kinds),
            "pip_requirements": [f"sparkml-sgdals=={__version__}", f"mlflow=={mlflow.__version__}"],
            "model_config": {"userCol": model.getUserCol(), "itemCol": model.getItemCol()},
        }
        logged: ModelInfo = mlflow.pyfunc.log_model(
            name=name, python_model=_pyfunc_file(), artifacts={_ARTIFACT: path}, **given | options
        )
    return logged


def load_model(model_uri: str) -> StreamingBiasedALSModel:
    """Load a model that was logged, such as "models:/films/3" or "runs:/ID/model".

    It transforms, recommends, and goes on with `update` and `updateStream`.
    """
    folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri)
    path = str(Path(folder, "artifacts", _ARTIFACT))
    return StreamingBiasedALSModel.load(path)


def _pyfunc_file() -> str:
    spec = importlib.util.find_spec("sparkml_sgdals.mlflow.pyfunc")
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


def _signature(model: StreamingBiasedALSModel, kinds: tuple[str, str]) -> ModelSignature:
    types = ["long" if kind == "int" else "string" for kind in kinds]
    inputs = Schema(
        [
            ColSpec(types[0], model.getUserCol()),
            ColSpec(types[1], model.getItemCol(), required=False),
        ]
    )
    return ModelSignature(inputs, params=ParamSchema([ParamSpec("n", "long", 10)]))
