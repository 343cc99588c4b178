"""Params of the estimator and the model: `learning` has them together, the others a part each."""

from sparkml_sgdals.ml.params.learning import (
    DEFAULT_SEED,
    LearningParams,
    ModelParams,
    default_settings,
)

__all__ = ["DEFAULT_SEED", "LearningParams", "ModelParams", "default_settings"]
