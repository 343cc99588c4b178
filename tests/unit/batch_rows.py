"""What three batches of a stream committed as their metrics."""

from __future__ import annotations

FIRST = {
    "batch": 0, "version": 1, "committed": "2026-01-01T00:00:00.000+00:00", "ratings": 10,
    "invalid": 1, "zeroWeight": 0, "newUsers": 4, "newItems": 5, "users": 4, "items": 5,
    "judged": 0, "rmse": None, "baselineRmse": None, "mae": None, "baselineMae": None,
    "logLikelihood": None, "within1": None, "within2": None, "validationRmse": None,
    "collectSeconds": 0.1, "learnSeconds": 0.1, "seconds": 0.5,
}  # fmt: skip
SECOND = FIRST | {
    "batch": 1, "version": 2, "ratings": 10, "newUsers": 1, "users": 2, "judged": 10,
    "rmse": 2.0, "baselineRmse": 3.0, "mae": 1.0, "baselineMae": 2.0, "logLikelihood": -1.5,
    "within1": 0.5, "within2": 0.9,
}  # fmt: skip
THIRD = SECOND | {"batch": 2, "version": 3, "ratings": 30, "judged": 30, "rmse": 1.0, "mae": 0.5}
