"""Close vectors: nearest features of a query, near-duplicates by thumbprints.

A search is exact up to a million images. Above, it probes the nearest cells of a faiss index (IVF); the number of probed cells
is chosen by recall against the exact search.

Near-duplicates are images saved at another size, with another compression or with a small mark. A thumbprint is the image at
8 × 8 pixels in colour. Two images are near-duplicates if no number of their thumbprints differs by more than MAX_DIFFERENCE,
nor by more than MAX_OF_RANGE of either's range (pages of text are all nearly one grey). Among 900 emoji and 2,000 icons this
marks only identical drawings (LOG.md). All pairs are found without comparing all: images are split at a number in which they
differ, those near the cut lie on both sides, and so on.

Letters: B rows of a block, C rows converted at a time or numbers of a thumbprint, Q queries, K best, d width of features,
N all images, R some of them.
"""

import sqlite3
import time
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eve_vl.search.database import BLOCK, CELLS, Database, checksum, index_errors
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import DamagedError
from eve_vl.utils.file_io import atomic_file

ROWS_AT_ONCE = 1024  # their float32 copy stays in the second-level cache
EXACT_MOST = 1_000_000  # images that are compared one by one
MOST_FOUND = 128  # results from cells, as many as runs re-rank: recall falls beyond, and faiss allocates memory for all
FACT, FILE = CELLS, "images.faiss"
ROWS_PER_CELL = 64  # that the cells are trained on
NUM_QUERIES, TOP, RECALL = 200, 10, 0.95

SIDE = 8  # pixels
SIZE = 3 * SIDE**2  # bytes of a thumbprint
MAX_DIFFERENCE, ROUNDING, MAX_OF_RANGE = 24, 2, 0.15  # of 255; always allowed; a share
ONES_AT_ONCE = 64  # images that are compared with about as many others
OTHERS_AT_ONCE = 8192  # bound on the others: blank pages resemble each other in every number
SAMPLE = 256  # images by which a cut is chosen
MAX_PAIRS = 0.9  # share of all pairs that both sides of a cut may leave
ALL = slice(None)
FIRST = slice(
    None, None, 7
)  # numbers from all over the image, compared first: most pairs already differ in these


@torch.no_grad()
def topk_exact(
    blocks: Iterable[np.ndarray], query_Qd: np.ndarray, k: int, is_wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best slots, int64 (Q, K), and their dot products, float32 (Q, K).

    K is k, or the number of wanted slots if that is smaller. blocks: float16 (B, d) each, in the order of slots. is_wanted:
    bool, one per slot; slots beyond its end are not wanted. Products are float32, so memory stays at one block.
    """
    query_dQ = torch.from_numpy(np.ascontiguousarray(query_Qd.T, dtype=np.float32))
    score_KQ, slot_KQ = (
        torch.empty((0, len(query_Qd))),
        torch.empty((0, len(query_Qd)), dtype=torch.int64),
    )
    start, k = 0, min(k, int(is_wanted.sum()))
    for block in blocks:
        wanted_B = torch.from_numpy(is_wanted[start : start + len(block)])
        block_Bd = torch.from_numpy(block[: len(wanted_B)])
        if wanted_B.any():
            score_BQ = torch.cat(
                [part_Cd.float() @ query_dQ for part_Cd in block_Bd.split(ROWS_AT_ONCE)]
            )
            score_BQ[~wanted_B] = -torch.inf
            found_KQ, row_KQ = score_BQ.topk(min(k, len(score_BQ)), dim=0)
            score_KQ, slot_KQ = (
                torch.cat([score_KQ, found_KQ]),
                torch.cat([slot_KQ, row_KQ + start]),
            )
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


def update_cells(database: Database, is_used: np.ndarray) -> None:
    """Bring the cells of a large index up to date, and print their recall.

    New images enter the trained cells; other numbers of images need other cells. is_used: bool, one per slot.
    """
    num = int(is_used.sum())
    if num <= EXACT_MOST or cell_facts(database) is not None:
        return
    if (faiss := load_faiss()) is None:
        print_line(
            f"note: faiss makes a search among {num:,} images faster: pip install 'eve-vl[search]', then index again"
        )
        return
    slots, rng, facts = (
        np.flatnonzero(is_used),
        np.random.default_rng(0),
        database.read_fact(FACT) or {},
    )
    cells, missing = _kept_cells(faiss, database, facts, num), slots
    if cells is None:
        num_cells = 2 ** round(np.log2(4 * num**0.5))
        cells = faiss.index_factory(
            database.images.dim, f"IVF{num_cells},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        cells.train(
            database.images.take(
                np.sort(rng.choice(slots, min(num, ROWS_PER_CELL * num_cells), replace=False))
            )
        )
        facts = {"cells": num_cells, "trained": num}
    else:
        changed = np.array(
            database.rows("SELECT slot FROM cell_change ORDER BY slot"), dtype=np.int64
        ).reshape(-1)
        cells.remove_ids(changed)
        missing = np.intersect1d(changed, slots)
    for rows in np.array_split(missing, -(-len(missing) // BLOCK) or 1):
        cells.add_with_ids(database.images.take(rows), rows)
    query_Qd = _sample_queries(database, slots, rng)
    exact_QK = topk_exact(database.images.first(len(is_used)), query_Qd, TOP, is_used)[0]
    cells.nprobe, recall = 4, 0.0
    while recall < RECALL and cells.nprobe < cells.nlist:
        cells.nprobe = min(2 * cells.nprobe, cells.nlist)
        recall = recall_of(cells, query_Qd, exact_QK)
    with (
        index_errors(database.folder),
        atomic_file(database.folder / FILE) as temporary,
        temporary.open("wb") as file,
    ):
        # faiss's own writer does not report a disk that is full at the last piece
        faiss.write_index(cells, faiss.PyCallbackIOWriter(file.write))
    path = database.folder / FILE
    facts |= {"probed": cells.nprobe, "recall@10": recall, "made": time.time_ns()}
    facts |= {"size": path.stat().st_size, "checksum": checksum(path)}
    with index_errors(database.folder), database.db:
        database.write_fact(FACT, facts)
        database.db.execute("DELETE FROM cell_change")
    added = f" ({len(missing):,} of them added)" * (len(missing) < num)
    where = f"{num:,} images in {cells.nlist:,} cells{added}"
    print_line(f"{where}, a search probes {cells.nprobe}: recall@{TOP} {recall:.3f} of exact")


def _kept_cells(faiss: ModuleType, database: Database, facts: dict[str, Any], num: int) -> Any:
    """Return the last update's cells, None if they are damaged or others fit better."""
    path = database.folder / FILE
    if not facts or not facts["trained"] / 2 < num < 2 * facts["trained"]:
        return None
    is_whole = (
        path.is_file()
        and path.stat().st_size == facts["size"]
        and checksum(path) == facts["checksum"]
    )
    return faiss.read_index(str(path)) if is_whole else None


def recall_of(cells: Any, query_Qd: np.ndarray, exact_QK: np.ndarray) -> float:
    """Return the share of the exact results that cells find."""
    found_QK = cells.search(query_Qd, exact_QK.shape[1])[1]
    return float(
        np.mean(
            [np.isin(exact, found).mean() for exact, found in zip(exact_QK, found_QK, strict=True)]
        )
    )


def cell_facts(database: Database) -> dict[str, Any] | None:
    """Return the facts of the cells, None unless they are complete and up to date."""
    path, facts = database.folder / FILE, database.read_fact(FACT)
    if not facts or database.rows("SELECT 1 FROM cell_change LIMIT 1"):
        return None
    return facts if path.is_file() and facts["size"] == path.stat().st_size else None


class Cells:
    """The cells of an index, mapped from the disk and reopened after an update."""

    def __init__(self, database: Database):
        self.database = database
        self._opened: tuple[Any, Any] = (None, None)

    def topk(self, query_Qd: np.ndarray, k: int, num: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return nearly the result of `topk_exact` over all images; None if it must do it.

        That is without cells or faiss, for a large k, or if the probed cells hold fewer than k images. Raises DamagedError.
        """
        faiss, facts = (
            (load_faiss(), cell_facts(self.database))
            if num > EXACT_MOST and k <= MOST_FOUND
            else (None, None)
        )
        if faiss is None or facts is None:
            return None
        path = self.database.folder / FILE
        try:
            if self._opened[0] != facts:
                if checksum(path) != facts["checksum"]:
                    raise RuntimeError
                self._opened = facts, faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
            score_QK, slot_QK = self._opened[1].search(query_Qd, k)
        except RuntimeError:  # all that faiss raises for a damaged file
            raise DamagedError(
                f"{path}: is damaged; delete it, then eve index --out {self.database.folder}"
            ) from None
        return (slot_QK, score_QK) if (slot_QK >= 0).all() else None


def _sample_queries(database: Database, slots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return vectors to measure recall with, float32 (Q, d).

    They are of captions, which resemble queries, or else of images.
    """
    captions = np.array(
        database.rows("SELECT slot FROM text ORDER BY slot"), dtype=np.int64
    ).reshape(-1)
    has_captions = len(captions) >= NUM_QUERIES and database.texts.num_rows
    vectors, candidates = (database.texts, captions) if has_captions else (database.images, slots)
    return vectors.take(
        np.sort(rng.choice(candidates, min(NUM_QUERIES, len(candidates)), replace=False))
    )


def mark_near_duplicates(db: sqlite3.Connection) -> None:
    """Store the first near-duplicate of new images, and of those that lost theirs."""
    if db.execute("SELECT 1 FROM feature WHERE near IS NULL").fetchone() is None:
        return
    # arrays, because lists of rows cost 0.1 kB more per image at the peak
    rows = db.execute("SELECT slot, coalesce(near, -1) FROM feature ORDER BY slot")
    both = np.fromiter(rows, np.dtype([("slot", "i8"), ("first", "i8")]))
    slots, before = both["slot"], both["first"]
    each = (data for (data,) in db.execute("SELECT thumbprint FROM feature ORDER BY slot"))
    prints_NC = np.fromiter(each, f"S{SIZE}", len(slots)).view(np.uint8).reshape(len(slots), -1)
    known = np.where(before < 0, -1, np.searchsorted(slots, before))
    marks = slots[first_near_duplicates(prints_NC, known)]
    is_other = marks != before
    changed = zip(marks[is_other].tolist(), slots[is_other].tolist(), strict=True)
    db.executemany("UPDATE feature SET near = ? WHERE slot = ?", changed)


def thumbprint(pixels: Tensor) -> bytes:
    """Return the thumbprint, uint8 (C,), of an image, uint8 (3, H, W)."""
    return F.adaptive_avg_pool2d(pixels.float(), SIDE).round_().byte().numpy().tobytes()


def first_near_duplicates(prints_NC: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """Return each image's first near-duplicate, itself if there is none, int64 (N,).

    prints: uint8 (N, C). known: results of an earlier call for images compared with each other then, -1 for the others.
    """
    range_N = prints_NC.max(1, initial=0).astype(np.float32) - prints_NC.min(1, initial=255)
    limit_N = np.clip(MAX_OF_RANGE * range_N, ROUNDING, MAX_DIFFERENCE)
    is_new_N, first_N, parts = known_N < 0, known_N.copy(), [np.arange(len(prints_NC))]
    first_N[is_new_N] = np.flatnonzero(is_new_N)
    while parts:
        rows_R = parts.pop()
        if not is_new_N[rows_R].any():
            continue
        if sides := _cut(prints_NC, limit_N, rows_R):
            parts += sides
        else:
            _compare(prints_NC, limit_N, rows_R, first_N)
    return first_N


def _cut(prints_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return two groups of images, one of which has both of any near-duplicates.

    Return no groups if they would leave nearly as many pairs to compare. limit_N: how much each image may differ from another.
    """
    if len(rows_R) <= ONES_AT_ONCE:
        return ()
    some_R = rows_R[:: -(-len(rows_R) // SAMPLE)]
    some_RC, reach_R1 = prints_NC[some_R], limit_N[some_R, None] / 2
    cut_C = some_RC.mean(0, dtype=np.float32)
    pairs_C = (some_RC <= cut_C + reach_R1).mean(0) ** 2 + (some_RC >= cut_C - reach_R1).mean(
        0
    ) ** 2  # as a share of all
    column = int(pairs_C.argmin())
    values_R, reach_R, cut = prints_NC[rows_R, column], limit_N[rows_R] / 2, cut_C[column]
    sides = rows_R[values_R <= cut + reach_R], rows_R[values_R >= cut - reach_R]
    return sides if sum(len(side) ** 2 for side in sides) < MAX_PAIRS * len(rows_R) ** 2 else ()


def _compare(
    prints_NC: np.ndarray, limit_N: np.ndarray, rows_R: np.ndarray, first_N: np.ndarray
) -> None:
    """Write the first near-duplicate of each of some ordered images into `first`."""
    left = rows_R
    for start in range(0, len(rows_R), ONES_AT_ONCE):
        ones, found = rows_R[start : start + ONES_AT_ONCE], []
        left = left[left > ones[0]]
        for others in np.split(left, range(OTHERS_AT_ONCE, len(left), OTHERS_AT_ONCE)):
            others = others[_is_near(prints_NC, limit_N, ones, others, FIRST).any(0)]
            is_near = _is_near(prints_NC, limit_N, ones, others, ALL)
            is_found = is_near.any(0)
            found.append(others[is_found])
            np.minimum.at(first_N, found[-1], ones[is_near.argmax(0)[is_found]])
        left = left[~np.isin(left, np.concatenate(found))]


def _is_near(
    prints_NC: np.ndarray, limit_N: np.ndarray, ones: np.ndarray, others: np.ndarray, numbers: slice
) -> np.ndarray:
    """Return whether the other of each pair comes later and is a near-duplicate.

    numbers: of the thumbprints, that are compared.
    """
    one_RC, other_RC = (
        torch.from_numpy(prints_NC[rows, numbers]).float() for rows in (ones, others)
    )
    distance = torch.cdist(one_RC, other_RC, p=torch.inf).numpy()
    return (distance <= np.minimum(limit_N[ones, None], limit_N[others])) & (ones[:, None] < others)
