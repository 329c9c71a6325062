"""Search among more than a million images, by faiss: features in cells (IVF), of which a query looks into the nearest.

How many cells it looks into is chosen by recall: of the 10 best by an exact search, the share that is found.

Letters: Q queries, K best, N rows, d width of features.
"""

import json
import time
from types import ModuleType
from typing import Any

import numpy as np

from eve_vl.search.database import Database, index_errors
from eve_vl.search.exact import topk_exact
from eve_vl.utils.atomic_io import atomic_file
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import DamagedError

EXACT_MOST = 1_000_000  # images that are searched one by one
MOST_FOUND = 128  # that cells are asked for, as many as runs re-rank: of more they miss many, and faiss makes room for all
FACT, FILE = "approximate", "images.faiss"
ROWS_PER_CELL = 64  # of those that cells are learnt from
NUM_ASKED, TOP, RECALL = 200, 10, 0.95


def library() -> ModuleType | None:
    """Return faiss, if it is installed."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return faiss


def build(store: Database, is_used: np.ndarray) -> None:
    """Make the cells of all images, if there are so many and if none are up to date, and say how good they are. is_used:
    bool, of each slot."""
    num = int(is_used.sum())
    if num <= EXACT_MOST or known(store) is not None:
        return
    if (faiss := library()) is None:
        print_line(f"note: a search among {num:,} images is quicker by faiss: pip install 'eve-vl[search]', then index again")
        return
    slots, rng = np.flatnonzero(is_used), np.random.default_rng(0)
    num_cells = 2 ** round(np.log2(4 * num**0.5))
    cells = faiss.index_factory(store.images.dim, f"IVF{num_cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    cells.train(store.images.take(np.sort(rng.choice(slots, min(num, ROWS_PER_CELL * num_cells), replace=False))))
    start = 0
    for block in store.images.first(len(is_used)):
        rows = np.flatnonzero(is_used[start : start + len(block)])
        cells.add_with_ids(block[rows].astype(np.float32), rows + start)
        start += len(block)
    asked_Qd = _queries(store, slots, rng)
    exact_QK = topk_exact(store.images.first(len(is_used)), asked_Qd, TOP, is_used)[0]
    cells.nprobe, recall = 8, recall_of(cells, asked_Qd, exact_QK)
    while recall < RECALL and cells.nprobe < num_cells:
        cells.nprobe = min(2 * cells.nprobe, num_cells)
        recall = recall_of(cells, asked_Qd, exact_QK)
    with index_errors(store.folder), atomic_file(store.folder / FILE) as temporary, temporary.open("wb") as file:
        # faiss itself would not tell of a disk that is full when the last piece is written
        faiss.write_index(cells, faiss.PyCallbackIOWriter(file.write))
    size = (store.folder / FILE).stat().st_size
    facts = {"cells": num_cells, "looked_into": cells.nprobe, "recall@10": recall, "size": size, "made": time.time_ns()}
    with index_errors(store.folder), store.db:
        store.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", [FACT, json.dumps(facts)])
    print_line(f"{num:,} images in {num_cells:,} cells, a search looks into {cells.nprobe}: recall@{TOP} {recall:.3f} of exact")


def recall_of(cells: Any, asked_Qd: np.ndarray, exact_QK: np.ndarray) -> float:
    """Return the share of the exact best that cells find."""
    found_QK = cells.search(asked_Qd, exact_QK.shape[1])[1]
    return float(np.mean([np.isin(exact, found).mean() for exact, found in zip(exact_QK, found_QK, strict=True)]))


def known(store: Database) -> dict[str, Any] | None:
    """Return what is known of the cells, if there are any that are up to date and whole."""
    with index_errors(store.folder):
        found = store.db.execute("SELECT value FROM fact WHERE name = ?", [FACT]).fetchone()
        facts = json.loads(found[0]) if found is not None and (store.folder / FILE).is_file() else {}
        return facts if facts and facts.get("size") == (store.folder / FILE).stat().st_size else None


class Cells:
    """The cells of an index, which stay on the disk, opened once for as long as nobody makes them anew."""

    def __init__(self, store: Database):
        self.store = store
        self._opened: tuple[Any, Any] = (None, None)

    def topk(self, query_Qd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return nearly what `nearest.best` does; None if that is to be asked: without cells or faiss, or where the cells that
        are looked into hold fewer than k. Raises DamagedError."""
        if k > MOST_FOUND or (faiss := library()) is None or (facts := known(self.store)) is None:
            return None
        path = self.store.folder / FILE
        try:
            if self._opened[0] != facts:
                self._opened = facts, faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
            score_QK, slot_QK = self._opened[1].search(query_Qd, k)
        except RuntimeError:  # faiss has no other for a damaged file
            advice = f"delete it; eve index --out {self.store.folder} makes it anew"
            raise DamagedError(f"{path}: is damaged; {advice}") from None
        return (slot_QK, score_QK) if (slot_QK >= 0).all() else None


def _queries(store: Database, slots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what to try the cells with, float32 (Q, d): captions, for those are what people write, or else images."""
    captions = np.array([slot for (slot,) in store.db.execute("SELECT slot FROM text ORDER BY slot")], dtype=np.int64)
    blocks, those = (
        (store.texts, captions) if len(captions) >= NUM_ASKED and not store.texts.is_empty else (store.images, slots)
    )
    return blocks.take(np.sort(rng.choice(those, min(NUM_ASKED, len(those)), replace=False)))
