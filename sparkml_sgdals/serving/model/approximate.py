"""Candidates for the best items by an approximate index, for catalogues of millions (extra `ann`).

The index only proposes: what it finds, and every item changed since it was built, is scored exactly
by the version that answers. It is built in a thread of its own beside the requests, anew where
much has changed, and measures its own recall against the exact ranking for users of the model.

The largest q . x is the nearest neighbour of q among x with a coordinate more, the root of
max |x|^2 - |x|^2: Bachrach et al. 2014, "Speeding up the Xbox recommender system using a euclidean
transformation for inner-product spaces". A bias is a feature whose other side is 1. The lists are
faiss's IVF.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.kernels.topn import top_n
from sparkml_sgdals.serving.model.holder import ModelHolder, NoModelError
from sparkml_sgdals.serving.model.served_model import ServedModel

__all__ = ["Approximate", "Built", "build_index"]

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_BEST: Final = 10
"""recall is of so many"""
_SAMPLE: Final = 100
"""users that recall is measured for"""
_SPARE: Final = 20
"""items fetched beyond twice those asked for"""


@dataclass(frozen=True)
class Built:
    """An index of the items of one version.

    Attributes
    ----------
    version : int
        what it was built of
    size : int
        items in it
    recall : float
        share of the exact best ten that it found, over a sample of users
    """

    index: Any
    indexes: object
    version: int
    size: int
    probes: int
    recall: float

    def search(self, query: F32, count: int) -> I64:
        """Rows of about the best `count` items for one query, float32 of shape (1, rank + 2)."""
        wanted = np.hstack([query, np.zeros((1, 1), np.float32)])
        _, found = self.index.search(wanted, count)
        rows: I64 = found[0][found[0] >= 0]
        return rows


def build_index(factors: F32, queries: F32, least: float, version: int, indexes: object) -> Built:
    """Build an index and open as many of its lists as the recall asked for needs.

    Parameters
    ----------
    factors : F32
        float32, shape (rank + 2, items), as `Candidates.factors`
    queries : F32
        float32, shape (users, rank + 2), for whom recall is measured
    least : float
        recall that is asked for; all lists are opened where it is not reached before
    version : int
        the version that the factors are of
    indexes : object
        `indexes` of that version, which its rows are numbered by; other ones outdate what is built
    """
    import faiss

    # requests need the cores
    faiss.omp_set_num_threads(1)
    size = factors.shape[1]
    items = np.ascontiguousarray(factors.T)
    squares = np.einsum("nf,nf->n", items, items)
    last = np.sqrt(np.maximum(squares.max() - squares, np.float32(0.0)))
    items = np.hstack([items, last[:, None]]).astype(np.float32)
    lists = max(1, int(4 * np.sqrt(size)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(items.shape[1]), items.shape[1], lists)
    # more points or rounds make no better lists for this
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = 8, 40, 1
    index.train(items)
    index.add(items)
    exact, _ = top_n(queries, factors, _BEST)
    asked = np.hstack([queries, np.zeros((len(queries), 1), np.float32)]).astype(np.float32)
    probes, recall = max(1, lists // 128), 0.0
    while True:
        index.nprobe = probes
        _, found = index.search(asked, _BEST)
        held = [np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]
        recall = float(np.mean(held)) if held else 1.0
        if recall >= least or probes >= lists:
            return Built(index, indexes, version, size, probes, recall)
        probes = min(lists, 2 * probes)


class Approximate:
    """Keeps an index of a holder's items.

    Parameters
    ----------
    recall : float
        asked for of each index
    stale : float
        share of the items that may have changed before it is built anew
    """

    def __init__(self, holder: ModelHolder, recall: float = 0.95, stale: float = 0.05) -> None:
        import faiss  # noqa: F401 - says at the start that it is not installed

        holder.keeps_changes = True
        self._holder, self._recall, self._stale = holder, recall, stale
        self.built: Built | None = None
        self.builds = 0
        self._since: tuple[int, int, I64] | None = None
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ann", daemon=True)

    def start(self) -> None:
        """Build a first index, then follow in a thread."""
        self.build()
        self._thread.start()

    def look(self) -> None:
        """Say that there is a new version."""
        self._wake.set()

    def stop(self) -> None:
        """Follow no more."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(30.0)

    def candidates(self, model: ServedModel, query: F32, count: int, gone: int) -> I64 | None:
        """Rows among which the best `count` are, `gone` of which may not be given.

        None where the exact ranking has to be asked: no index fits the version, or so much is
        wanted that it would pay nothing.
        """
        built = self.built
        if built is None or built.indexes is not model.indexes or model.events is not None:
            return None
        wanted = 2 * count + gone + _SPARE
        if 4 * wanted > built.size:
            return None
        changed = self._changed(model, built)
        return np.union1d(built.search(query, wanted), changed[changed < model.items.size])

    def _changed(self, model: ServedModel, built: Built) -> I64:
        """Items that versions since have changed; a version that has yet to be shown may count."""
        held = self._since
        if held is not None and held[:2] == (built.version, model.version):
            return held[2]
        rows = model.changes.since(built.version)
        self._since = (built.version, model.version, rows)
        return rows

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._ended.is_set():
                return
            try:
                if self._outdated():
                    self.build()
            except NoModelError:
                continue
            except Exception:
                # exact rankings go on
                logger.exception("no index could be built")

    def _outdated(self) -> bool:
        with self._holder.reading() as model:
            built = self.built
            if built is None or built.indexes is not model.indexes:
                return True
            return self._changed(model, built).size > max(1_000, self._stale * built.size)

    def build(self) -> None:
        """Build an index of the version that is served."""
        with self._holder.reading() as model:
            if model.events is not None or not model.items.size:
                return
            factors = model.candidates.factors[:, : model.items.size].copy()
            rng = np.random.default_rng(model.version)
            users = rng.integers(0, max(model.users.size, 1), min(_SAMPLE, model.users.size))
            queries, _ = model.candidates.query(model.users.mean[users], model.users.var[users])
            version, indexes = model.version, model.indexes
        self.built = build_index(factors, queries, self._recall, version, indexes)
        self.builds += 1
        model.changes.forget(version)
