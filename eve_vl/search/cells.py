"""The cells of a large index: an inverted file of faiss (IVF), so that a search probes few images.

A search is exact up to a million images. Above, it probes the nearest cells; the number of probed
cells is chosen by recall against the exact search.

Letters: Q queries, K best, d width of features.
"""

import dataclasses
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from eve_vl.metrics.topk import top_candidates_of_blocks
from eve_vl.search.checksums import crc32
from eve_vl.search.database import Database
from eve_vl.search.index_files import CELLS, index_errors
from eve_vl.search.schema import CELLS_FACT
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import DamagedError
from eve_vl.utils.file_io import atomic_file

MOST_EXACT = 1_000_000  # images that are compared one by one
# results from cells, as many as runs re-rank: recall falls beyond, and faiss allocates memory for
# all of them
MOST_RESULTS = 128
ROWS_PER_CELL = 64  # that the cells are trained on
ROWS_AT_ONCE = 65_536  # that are added to the cells
NUM_QUERIES = 200  # to measure recall with
TOP = 10
LEAST_RECALL = 0.95


def load_faiss() -> ModuleType | None:
    """Return faiss if it is installed."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return faiss


@dataclass(frozen=True)
class CellFacts:
    """What the index says about the file of its cells."""

    trained: int
    """Images when the centres were trained."""
    updated_at: int
    """Time of the last update, in nanoseconds."""
    size: int
    """Bytes of the file."""
    checksum: int


def read_facts(database: Database) -> CellFacts | None:
    """Return the facts of the last update, None without one."""
    facts = database.read_fact(CELLS_FACT)
    if not facts:
        return None
    names = [field.name for field in dataclasses.fields(CellFacts)]
    return CellFacts(*[facts[name] for name in names])


def current_facts(database: Database) -> CellFacts | None:
    """Return the facts of the cells, None unless they are complete and up to date."""
    facts = read_facts(database)
    if facts is None or database.rows("SELECT 1 FROM cell_change LIMIT 1"):
        return None
    path = database.folder / CELLS
    if not path.is_file() or facts.size != path.stat().st_size:
        return None
    return facts


class Cells:
    """The cells of an index, mapped from the disk and reopened after an update."""

    def __init__(self, database: Database):
        self.database = database
        self._facts: CellFacts | None = None
        self._cells: Any = None

    def topk(self, query_Qd: np.ndarray, k: int, num: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return nearly the k best of all images; None if the exact search must find them.

        That is without cells or faiss, for a large k, or if the probed cells hold fewer than k
        images. Raises DamagedError.
        """
        if num <= MOST_EXACT or k > MOST_RESULTS:
            return None
        faiss = load_faiss()
        facts = current_facts(self.database)
        if faiss is None or facts is None:
            return None
        path = self.database.folder / CELLS
        try:
            if self._facts != facts:
                if crc32(path) != facts.checksum:
                    raise RuntimeError
                self._cells = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
                self._facts = facts
            score_QK, slot_QK = self._cells.search(query_Qd, k)
        except RuntimeError:  # all that faiss raises for a damaged file
            raise DamagedError(
                f"{path}: is damaged; delete it, then eve index --out {self.database.folder}"
            ) from None
        if (slot_QK < 0).any():
            return None
        return slot_QK, score_QK


def update_cells(database: Database, is_used: np.ndarray) -> None:
    """Bring the cells of a large index up to date, and print their recall.

    New images enter the trained cells; other numbers of images need other cells. is_used: bool, one
    per slot.
    """
    num_images = int(is_used.sum())
    if num_images <= MOST_EXACT or current_facts(database) is not None:
        return
    faiss = load_faiss()
    if faiss is None:
        print_line(
            f"note: faiss makes a search among {num_images:,} images faster: "
            "pip install 'eve-vl[search]', then index again"
        )
        return

    slots = np.flatnonzero(is_used)
    rng = np.random.default_rng(0)
    facts = read_facts(database)
    cells = None
    if facts is not None:
        cells = _former_cells(faiss, database, facts, num_images)
    if facts is None or cells is None:
        cells = _train(faiss, database, slots, rng)
        num_trained = num_images
        new_slots = slots
    else:
        num_trained = facts.trained
        changes = database.rows("SELECT slot FROM cell_change ORDER BY slot")
        changed_slots = np.array(changes, dtype=np.int64).reshape(-1)
        cells.remove_ids(changed_slots)
        new_slots = np.intersect1d(changed_slots, slots)
    num_parts = -(-len(new_slots) // ROWS_AT_ONCE) or 1
    for rows in np.array_split(new_slots, num_parts):
        cells.add_with_ids(database.images.take(rows), rows)

    recall = _choose_num_probed(cells, database, is_used, rng)
    _write(faiss, cells, database)
    _store_facts(database, num_trained)
    added = f" ({len(new_slots):,} of them added)" if len(new_slots) < num_images else ""
    print_line(
        f"{num_images:,} images in {cells.nlist:,} cells{added}, "
        f"a search probes {cells.nprobe}: recall@{TOP} {recall:.3f} of exact"
    )


def _former_cells(faiss: ModuleType, database: Database, facts: CellFacts, num_images: int) -> Any:
    """Return the last update's cells, None if they are damaged or others fit better."""
    if not facts.trained / 2 < num_images < 2 * facts.trained:
        return None
    path = database.folder / CELLS
    if not path.is_file() or path.stat().st_size != facts.size:
        return None
    if crc32(path) != facts.checksum:
        return None
    return faiss.read_index(str(path))


def _train(
    faiss: ModuleType, database: Database, slots: np.ndarray, rng: np.random.Generator
) -> Any:
    """Return empty cells around centres that are trained on a sample of images."""
    num_cells = 2 ** round(np.log2(4 * len(slots) ** 0.5))
    cells = faiss.index_factory(
        database.images.dim, f"IVF{num_cells},SQfp16", faiss.METRIC_INNER_PRODUCT
    )
    num_sampled = min(len(slots), ROWS_PER_CELL * num_cells)
    sample = np.sort(rng.choice(slots, num_sampled, replace=False))
    cells.train(database.images.take(sample))
    return cells


def _choose_num_probed(
    cells: Any, database: Database, is_used: np.ndarray, rng: np.random.Generator
) -> float:
    """Set the number of probed cells to the least with enough recall; return the recall."""
    query_Qd = _sample_queries(database, np.flatnonzero(is_used), rng)
    blocks = database.images.first(len(is_used))
    exact_QK, _ = top_candidates_of_blocks(blocks, query_Qd, TOP, is_used)
    cells.nprobe = 4
    recall = 0.0
    while recall < LEAST_RECALL and cells.nprobe < cells.nlist:
        cells.nprobe = min(2 * cells.nprobe, cells.nlist)
        recall = _recall(cells, query_Qd, exact_QK)
    return recall


def _sample_queries(database: Database, slots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return vectors to measure recall with, float32 (Q, d).

    They are of captions, which resemble queries, or else of images.
    """
    rows = database.rows("SELECT slot FROM text ORDER BY slot")
    text_slots = np.array(rows, dtype=np.int64).reshape(-1)
    vectors = database.images
    if len(text_slots) >= NUM_QUERIES and database.texts.num_rows:
        vectors = database.texts
        slots = text_slots
    return vectors.take(np.sort(rng.choice(slots, min(NUM_QUERIES, len(slots)), replace=False)))


def _recall(cells: Any, query_Qd: np.ndarray, exact_QK: np.ndarray) -> float:
    """Return the share of the exact results that cells find."""
    _, slot_QK = cells.search(query_Qd, exact_QK.shape[1])
    shares = [
        np.isin(exact_K, slot_K).mean() for exact_K, slot_K in zip(exact_QK, slot_QK, strict=True)
    ]
    return float(np.mean(shares))


def _write(faiss: ModuleType, cells: Any, database: Database) -> None:
    """Write the file of the cells. Raises DamagedError."""
    path = database.folder / CELLS
    with (
        index_errors(database.folder),
        atomic_file(path) as temporary,
        temporary.open("wb") as file,
    ):
        # faiss's own writer does not report a disk that is full at the last piece
        faiss.write_index(cells, faiss.PyCallbackIOWriter(file.write))


def _store_facts(database: Database, num_trained: int) -> None:
    """Store the facts of the cells, which are up to date now. Raises DamagedError."""
    path = database.folder / CELLS
    facts = CellFacts(
        trained=num_trained,
        updated_at=time.time_ns(),
        size=path.stat().st_size,
        checksum=crc32(path),
    )
    with index_errors(database.folder), database.db:
        database.write_fact(CELLS_FACT, dataclasses.asdict(facts))
        database.db.execute("DELETE FROM cell_change")
