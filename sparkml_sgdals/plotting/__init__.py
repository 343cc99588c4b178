"""Pictures of models and streams, readable without colour; needs matplotlib (extra `plot`).

Every function returns a matplotlib Figure, which `savefig` writes and a notebook shows.
"""

from __future__ import annotations

from sparkml_sgdals.extras import install

try:
    import matplotlib  # noqa: F401
except ImportError as missing:
    raise ImportError(f"Pictures need matplotlib: {install('plot')}") from missing

from sparkml_sgdals.plotting.calibration import calibration_table, plot_calibration
from sparkml_sgdals.plotting.curves import plot_race, plot_stream
from sparkml_sgdals.plotting.factors import plot_factors
from sparkml_sgdals.plotting.learning import plot_errors, plot_passes, plot_ranks
from sparkml_sgdals.plotting.matrix import MatrixStep, plot_matrix, save_film

__all__ = [
    "MatrixStep",
    "calibration_table",
    "plot_calibration",
    "plot_errors",
    "plot_factors",
    "plot_matrix",
    "plot_passes",
    "plot_race",
    "plot_ranks",
    "plot_stream",
    "save_film",
]
