"""Find the nearest vectors: exactly, or above a million images in the cells of a faiss index (IVF).

A query probes only the nearest cells. The number of probed cells is chosen by recall against the exact search.

Letters: B rows of a block, C rows converted at a time, Q queries, K best, d width of features.
"""

import time
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from eve_vl.search.database import Database, index_errors
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import DamagedError
from eve_vl.utils.file_io import atomic_file

ROWS_AT_ONCE = 1024  # their float32 copy stays in the second-level cache
EXACT_MOST = 1_000_000  # images that are compared one by one
MOST_FOUND = 128  # results from cells, as many as runs re-rank: recall falls beyond, and faiss allocates memory for all
FACT, FILE = "approximate", "images.faiss"
ROWS_PER_CELL = 64  # that the cells are trained on
NUM_QUERIES, TOP, RECALL = 200, 10, 0.95


@torch.no_grad()
def topk_exact(
    blocks: Iterable[np.ndarray], query_Qd: np.ndarray, k: int, is_wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the slots with the largest dot products, int64 (Q, K), best first, and these products, float32 (Q, K).

    K is k, or the number of wanted slots if that is smaller. blocks: float16 (B, d) each, in the order of slots. is_wanted:
    bool, one per slot; slots beyond its end are not wanted. Products are float32, so memory stays at one block.
    """
    query_dQ = torch.from_numpy(np.ascontiguousarray(query_Qd.T, dtype=np.float32))
    score_KQ, slot_KQ = torch.empty((0, len(query_Qd))), torch.empty((0, len(query_Qd)), dtype=torch.int64)
    start, k = 0, min(k, int(is_wanted.sum()))
    for block in blocks:
        wanted_B = torch.from_numpy(is_wanted[start : start + len(block)])
        block_Bd = torch.from_numpy(block[: len(wanted_B)])
        if wanted_B.any():
            score_BQ = torch.cat([part_Cd.float() @ query_dQ for part_Cd in block_Bd.split(ROWS_AT_ONCE)])
            score_BQ[~wanted_B] = -torch.inf
            found_KQ, row_KQ = score_BQ.topk(min(k, len(score_BQ)), dim=0)
            score_KQ, slot_KQ = torch.cat([score_KQ, found_KQ]), torch.cat([slot_KQ, row_KQ + start])
            score_KQ, place_KQ = score_KQ.topk(min(k, len(score_KQ)), dim=0)
            slot_KQ = slot_KQ.gather(0, place_KQ)
        start += len(block)
    return slot_KQ.T.numpy(), score_KQ.T.numpy()


def load_faiss() -> ModuleType | None:
    """Return faiss if it is installed."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return faiss


def build_cells(database: Database, is_used: np.ndarray) -> None:
    """Build the cells of a large index unless they are up to date, and print their recall.

    is_used: bool, one per slot.
    """
    num = int(is_used.sum())
    if num <= EXACT_MOST or cell_facts(database) is not None:
        return
    if (faiss := load_faiss()) is None:
        print_line(f"note: faiss makes a search among {num:,} images faster: pip install 'eve-vl[search]', then index again")
        return
    slots, rng = np.flatnonzero(is_used), np.random.default_rng(0)
    num_cells = 2 ** round(np.log2(4 * num**0.5))
    cells = faiss.index_factory(database.images.dim, f"IVF{num_cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    cells.train(database.images.take(np.sort(rng.choice(slots, min(num, ROWS_PER_CELL * num_cells), replace=False))))
    start = 0
    for block in database.images.first(len(is_used)):
        rows = np.flatnonzero(is_used[start : start + len(block)])
        cells.add_with_ids(block[rows].astype(np.float32), rows + start)
        start += len(block)
    query_Qd = _sample_queries(database, slots, rng)
    exact_QK = topk_exact(database.images.first(len(is_used)), query_Qd, TOP, is_used)[0]
    cells.nprobe, recall = 8, recall_of(cells, query_Qd, exact_QK)
    while recall < RECALL and cells.nprobe < num_cells:
        cells.nprobe = min(2 * cells.nprobe, num_cells)
        recall = recall_of(cells, query_Qd, exact_QK)
    with index_errors(database.folder), atomic_file(database.folder / FILE) as temporary, temporary.open("wb") as file:
        # faiss's own writer does not report a disk that is full at the last piece
        faiss.write_index(cells, faiss.PyCallbackIOWriter(file.write))
    size = (database.folder / FILE).stat().st_size
    facts = {"cells": num_cells, "probed": cells.nprobe, "recall@10": recall, "size": size, "made": time.time_ns()}
    with index_errors(database.folder), database.db:
        database.write_fact(FACT, facts)
    print_line(f"{num:,} images in {num_cells:,} cells, a search probes {cells.nprobe}: recall@{TOP} {recall:.3f} of exact")


def recall_of(cells: Any, query_Qd: np.ndarray, exact_QK: np.ndarray) -> float:
    """Return the share of the exact results that cells find."""
    found_QK = cells.search(query_Qd, exact_QK.shape[1])[1]
    return float(np.mean([np.isin(exact, found).mean() for exact, found in zip(exact_QK, found_QK, strict=True)]))


def cell_facts(database: Database) -> dict[str, Any] | None:
    """Return the facts of the cells, None unless they are complete and up to date."""
    path = database.folder / FILE
    facts = database.read_fact(FACT)
    return facts if facts and path.is_file() and facts["size"] == path.stat().st_size else None


class Cells:
    """The cells of an index, mapped from the disk and reopened after an update."""

    def __init__(self, database: Database):
        self.database = database
        self._opened: tuple[Any, Any] = (None, None)

    def topk(self, query_Qd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return nearly the result of `topk_exact` over all images; None if the exact search must do it.

        That is without cells or faiss, for a large k, or if the probed cells hold fewer than k images. Raises DamagedError.
        """
        if k > MOST_FOUND or (faiss := load_faiss()) is None or (facts := cell_facts(self.database)) is None:
            return None
        path = self.database.folder / FILE
        try:
            if self._opened[0] != facts:
                self._opened = facts, faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
            score_QK, slot_QK = self._opened[1].search(query_Qd, k)
        except RuntimeError:  # all that faiss raises for a damaged file
            advice = f"delete it, then eve index --out {self.database.folder}"
            raise DamagedError(f"{path}: is damaged; {advice}") from None
        return (slot_QK, score_QK) if (slot_QK >= 0).all() else None


def _sample_queries(database: Database, slots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return vectors to measure recall with, float32 (Q, d): of captions, which resemble queries, or else of images."""
    captions = np.array(database.rows("SELECT slot FROM text ORDER BY slot"), dtype=np.int64).reshape(-1)
    has_captions = len(captions) >= NUM_QUERIES and database.texts.num_rows
    vectors, candidates = (database.texts, captions) if has_captions else (database.images, slots)
    return vectors.take(np.sort(rng.choice(candidates, min(NUM_QUERIES, len(candidates)), replace=False)))
