"""Candidates for the best items by an approximate index, for catalogues of millions (extra `ann`).

The index only proposes: what it finds, and every item changed since it was built, is scored exactly
by the version that answers. It is built in a thread of its own beside the requests, anew where
much has changed, and measures its own recall against the exact ranking for users of the model.

The largest q . x is the nearest neighbour of q among x with a coordinate more, the root of
max |x|^2 - |x|^2: Bachrach et al. 2014, "Speeding up the Xbox recommender system using a euclidean
transformation for inner-product spaces". A bias is a feature whose other side is 1. The lists are
faiss's IVF. Where a table of events was fitted, what it says of items proposes, and the filter's
score beside it where that has learned; who is not in the table is ranked exactly.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.kernels.events.judges import FLOOR, NEVER
from sparkml_sgdals.kernels.topn import Tastes, top_n
from sparkml_sgdals.serving.model.holder import ModelHolder, NoModelError
from sparkml_sgdals.serving.model.person import person_at
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.event_scores import table_alone

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

    lists: tuple[_Lists, ...]
    indexes: object
    version: int
    size: int
    probes: int
    recall: float

    def search(self, query: F32, count: int, taste: F32 | None = None) -> I64:
        """Rows of about the best `count` items for one query, twice as many of two products.

        Parameters
        ----------
        query : F32
            float32, shape (1, rank + 2)
        count : int
            how many
        taste : F32 | None
            float32, shape (1, table rank + 1), where a table of events was fitted
        """
        asked = {"score": query, "table": None if taste is None else _taste_query(taste)}
        found = [lists.search(asked[lists.name], count)[0] for lists in self.lists]
        rows: I64 = found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        return rows[rows >= 0]


def _taste_query(tastes: F32) -> F32:
    """Rows to multiply with `_taste_factors`, of users' tastes."""
    return np.hstack([tastes[:, 1:], np.full((len(tastes), 1), FLOOR, np.float32)])


def _taste_factors(tastes: F32) -> F32:
    """Return factors whose product e^o (U . P + f) orders items as the table, the lowest apart."""
    scales = np.exp(tastes[0] - tastes[0].max())
    return np.vstack([tastes[1:] * scales, scales]).astype(np.float32)


class _Lists:
    """faiss's lists of the items' factors for one product, float32 of shape (width, items)."""

    def __init__(self, name: str, factors: F32) -> None:
        import faiss

        self.name = name
        size = factors.shape[1]
        items = np.ascontiguousarray(factors.T)
        squares = np.einsum("nf,nf->n", items, items)
        last = np.sqrt(np.maximum(squares.max() - squares, np.float32(0.0)))
        items = np.hstack([items, last[:, None]]).astype(np.float32)
        self.total = max(1, int(4 * np.sqrt(size)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(items.shape[1]), items.shape[1], self.total)
        # more points or rounds make no better lists for this
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = (
            8,
            40,
            1,
        )
        index.train(items)
        index.add(items)
        self.index = index

    def search(self, queries: F32 | None, count: int) -> I64:
        """Rows of the best for each query, -1 where there are no more."""
        assert queries is not None
        asked = np.hstack([queries, np.zeros((len(queries), 1), np.float32)]).astype(np.float32)
        found: I64 = self.index.search(asked, count)[1]
        return found


def build_index(
    factors: F32, queries: F32, least: float, version: int, indexes: object,
    tastes: Tastes | None = None, table_alone: bool = False,
) -> Built:  # fmt: skip
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
    tastes : Tastes | None
        of the same users and items, where a table of events was fitted
    table_alone : bool
        whether the filter has learned nothing
    """
    import faiss

    # requests need the cores
    faiss.omp_set_num_threads(1)
    products = {} if table_alone else {"score": factors}
    if tastes is not None:
        products["table"] = _taste_factors(tastes.candidates)
    held = tuple(_Lists(name, some) for name, some in products.items())
    exact, _ = top_n(queries, factors, _BEST, tastes=tastes)
    # what requests for so many fetch, where that is ranked otherwise than by one product
    count = _BEST if tastes is None else 2 * _BEST + _SPARE
    total = held[0].total
    built = Built(held, indexes, version, factors.shape[1], max(1, total // 128), 0.0)
    while True:
        for lists in held:
            lists.index.nprobe = built.probes
        shares = [
            np.isin(best, built.search(
                queries[n : n + 1], count, None if tastes is None else tastes.queries[n : n + 1]
            )).mean()
            for n, best in enumerate(exact)
        ]  # fmt: skip
        built = replace(built, recall=float(np.mean(shares)) if shares else 1.0)
        if built.recall >= least or built.probes >= total:
            return built
        built = replace(built, probes=min(total, 2 * built.probes))


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

    def candidates(
        self, model: ServedModel, query: F32, count: int, gone: int, taste: F32 | None = None
    ) -> I64 | None:
        """Rows among which the best `count` are, `gone` of which may not be given.

        None where the exact ranking has to be asked: no index fits the version, so much is wanted
        that it would pay nothing, or a model of events knows no taste of the user.
        """
        built = self.built
        if built is None or built.indexes is not model.indexes:
            return None
        if model.events is None:
            taste = None
        elif taste is None or not taste.size or taste[0] <= NEVER / 2:
            return None
        wanted = 2 * count + gone + _SPARE
        if 4 * wanted > built.size:
            return None
        changed = self._changed(model, built)
        near = built.search(query, wanted, None if taste is None else taste[None, :])
        near = np.union1d(near, changed[changed < model.items.size])
        return np.union1d(near, model.joined) if model.joined.size else near

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
            fitted = model.anchors is not None
            if (model.events is not None and not fitted) or not model.items.size:
                return
            size, tastes = model.items.size, None
            factors = model.candidates.factors[:, :size].copy()
            rng = np.random.default_rng(model.version)
            users = rng.integers(0, max(model.users.size, 1), min(_SAMPLE, model.users.size))
            queries, _ = model.candidates.query(model.users.mean[users], model.users.var[users])
            if fitted:
                whom = [person_at(model, row) for row in users.tolist()]
                whom = [one for one in whom if one.taste[0] > NEVER / 2]
                if not whom:
                    return
                queries, _ = model.candidates.query(
                    np.array([one.mean for one in whom]), np.array([one.var for one in whom])
                )
                tastes = Tastes(
                    np.array([one.taste for one in whom]), model.candidates.tastes[:, :size].copy()
                )
            version, indexes, alone = model.version, model.indexes, table_alone(model.shell)
        self.built = build_index(
            factors, queries, self._recall, version, indexes, tastes, fitted and alone
        )
        self.builds += 1
        model.changes.forget(version)
