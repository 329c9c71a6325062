"""Files of an index: a SQLite database, vectors, and checksums of both.

Images with the same bytes share one slot of the vector files. Vectors are on the disk before the database refers to them:
a crash or a full disk leaves rows of vectors that the database does not know, and the next update overwrites them.

Checksums are withdrawn before the first change and written after the last one. So they are absent during an update and after
a crash, and a difference is always damage.

Letters: B rows, d width of features.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eve_vl import __version__
from eve_vl.builtin.names import name_of
from eve_vl.config import generated
from eve_vl.data.source_names import absolute_spec
from eve_vl.utils.errors import DamagedError, UserError, did_you_mean
from eve_vl.utils.file_io import atomic_file, has_fields, parse_json, read_json, write_file

if TYPE_CHECKING:  # opening an index imports no torch, which takes seconds
    from eve_vl.run.loading import LoadedRun

DATABASE = "index.sqlite"
CHECKSUMS = "checksums.json"  # by file name; {} during an update
CHECKED = (DATABASE, "images.f16", "captions.f16")
FACTS = {"run": str, "step": int, "weights": str, "tokenizer": str, "dim": int, "columns": list}
FORMAT = 5  # counts up when older files cannot be read any more, or when features change
CELLS = "cells"  # name of the fact about the cells of a large index (nearest.py)
BLOCK = 65_536  # rows of a vector file that are mapped at a time
NOTED = f"ON feature WHEN EXISTS (SELECT 1 FROM fact WHERE name = '{CELLS}') BEGIN INSERT OR IGNORE INTO cell_change VALUES"
TOKENS = "tokenize = 'porter unicode61 remove_diacritics 2'"
SCHEMA = f"""
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE source (id INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE, reading TEXT NOT NULL);
CREATE TABLE feature (slot INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, thumbprint BLOB NOT NULL, near INTEGER);
CREATE TABLE image (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, name TEXT NOT NULL, row INTEGER NOT NULL, path TEXT, start INTEGER,
    size INTEGER, changed INTEGER, slot INTEGER, reason TEXT, UNIQUE (source, name)
);
CREATE INDEX image_slot ON image (slot);
CREATE TABLE cell_change (slot INTEGER PRIMARY KEY);
CREATE TRIGGER feature_new AFTER INSERT {NOTED} (new.slot); END;
CREATE TRIGGER feature_gone AFTER DELETE {NOTED} (old.slot); END;
CREATE TABLE text (slot INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE caption (
    image INTEGER NOT NULL, slot INTEGER NOT NULL, columns TEXT NOT NULL, PRIMARY KEY (image, slot, columns)
) WITHOUT ROWID;
CREATE INDEX caption_slot ON caption (slot);
CREATE VIRTUAL TABLE image_words USING fts5 (captions, names, columns, {TOKENS});
INSERT INTO image_words (image_words, rank) VALUES ('rank', 'bm25(1.0, 0.5, 0.25)');
CREATE VIRTUAL TABLE text_words USING fts5 (text, content = 'text', content_rowid = 'slot', {TOKENS});
CREATE TRIGGER text_new AFTER INSERT ON text BEGIN
    INSERT INTO text_words (rowid, text) VALUES (new.slot, new.text);
END;
CREATE TRIGGER text_gone AFTER DELETE ON text BEGIN
    INSERT INTO text_words (text_words, rowid, text) VALUES ('delete', old.slot, old.text);
END;
"""
"""fact: the run's fingerprint, the names of all columns, the background of scores and, in a large index, its cells, as JSON.
feature: near is the first slot of a near-duplicate, perhaps its own; NULL: not compared yet.
cell_change: slots whose features came or went since the cells were made.
image: path of its file or shard; start in the shard (NULL: it is the file); size; time of the file's last change of content,
name or permissions (NULL: not read, or no file). An unreadable image has a reason instead of a slot.
image_words: by slot of an image, its captions, the names of its files and the values of its columns, one a line each.
text: distinct captions. caption: one row of a source about an image: a caption or NO_CAPTION, and {"column": "value", …}."""
NO_CAPTION = -1


ADVICE = {
    "locked": "another process uses it: run the same command again later, nothing in the index is lost",
    "full|No space|quota|disk I/O": "nothing in the index is lost: free some space and run the same command again",
    "unable to open": "nothing in the index is lost: make it readable and writable, or free some space or inodes",
    "readonly": "nothing in the index is lost: make it writable, because an interrupted update must be undone first",
    "malformed|not a database|no such table|vtable|fts5: ": "{recreate}",
    "no such module": "the SQLite of this Python lacks full-text search; use another Python",
}
"""Words of an error of SQLite or of the disk → the advice that follows it."""

_READING = (
    threading.Lock()
)  # closing the database's file drops the locks that SQLite has on it in this process

Encode = Callable[[list[Any]], np.ndarray]


class VectorFile:
    """Vectors, float16 (n, d), in one file; slots number the rows.

    Rows are written through a file handle, because a write through the memory map kills the process when the disk is full.
    Unwritten rows hold any values.
    """

    def __init__(self, folder: Path, name: str, dim: int, check: Callable[[], None] = lambda: None):
        """check: raises an error if the folder's content must not be changed any more."""
        self.path, self.dim, self.check = folder / f"{name}.f16", dim, check

    def write(self, slots: Sequence[int], features_Bd: np.ndarray) -> None:
        """Write rows. Raises OSError, and the errors of `check`."""
        self.check()
        self.path.touch()
        with self.path.open("r+b") as file:
            for slot, row in zip(slots, features_Bd.astype("<f2"), strict=True):
                file.seek(row.nbytes * slot)
                file.write(row.tobytes())

    def sync(self) -> None:
        """Wait until all rows are on the disk. Raises OSError."""
        if self.num_rows:
            with self.path.open("r+b") as file:
                os.fsync(file)

    @property
    def num_rows(self) -> int:
        """Number of rows in the file."""
        return self.path.stat().st_size // (2 * self.dim) if self.path.is_file() else 0

    def first(self, num: int) -> Iterator[np.ndarray]:
        """Yield the first rows, float16 (B, d), BLOCK at a time.

        Raises DamagedError if rows are missing.
        """
        if self.num_rows < num:
            raise DamagedError(
                f"{self.path}: lacks features that the database lists; {recreate_hint(self.path.parent)}"
            )
        for start in range(0, num, BLOCK):
            # copy on write, because torch refuses read-only arrays; in blocks, because Linux may refuse such a map above RAM
            yield np.memmap(
                self.path, "<f2", "c", 2 * self.dim * start, (min(BLOCK, num - start), self.dim)
            )

    def take(self, slots: np.ndarray) -> np.ndarray:
        """Return the rows of some slots, float32 (B, d)."""
        return np.memmap(self.path, "<f2", "r", shape=(self.num_rows, self.dim))[slots].astype(
            np.float32
        )


class FeatureWriter:
    """Computes features batch by batch and writes them to the first free slots."""

    def __init__(
        self, vectors: VectorFile, encode: Encode | None, used: Sequence[int], batch_size: int
    ):
        """encode: returns the features of values; None if the run has none.
        used: slots that are not free.

        Raises UserError if the features of used slots are missing.
        """
        self.vectors, self.encode, self.batch_size = vectors, encode, batch_size
        end = max(used, default=-1) + 1
        if encode is not None:
            next(
                vectors.first(end), None
            )  # rows written behind the end of a truncated file would hide the damage
        self._free = chain(np.setdiff1d(np.arange(end), used).tolist(), count(end))
        self.waiting: list[tuple[int, Any]] = []
        """Slots and values whose features are not written yet."""

    def add(self, value: Any) -> int:
        """Return the slot that the features of a value will have."""
        slot = next(self._free)
        if self.encode is not None:
            self.waiting.append((slot, value))
        return slot

    def flush(self) -> None:
        """Compute and write all that wait. Raises OSError."""
        for start in range(0, len(self.waiting), self.batch_size):
            slots, values = zip(*self.waiting[start : start + self.batch_size], strict=True)
            assert self.encode is not None
            self.vectors.write(slots, self.encode(list(values)))
        self.waiting.clear()


class Database:
    """The open SQLite database and the vector files of an index."""

    def __init__(self, folder: Path, db: sqlite3.Connection, check: Callable[[], None]):
        """check: raises DamagedError if the folder now holds another database."""
        self.folder, self._db, self._check = folder, db, check
        weakref.finalize(self, db.close)
        self.facts: dict[str, Any] = {}
        with contextlib.suppress(TypeError, ValueError):
            self.facts |= {
                name: parse_json(value)
                for name, value in db.execute("SELECT name, value FROM fact")
            }
        if not has_fields(self.facts, **FACTS):
            raise DamagedError(
                f"{folder / DATABASE}: its table of facts is damaged; {recreate_hint(folder)}"
            )
        self.images, self.texts = (
            VectorFile(folder, name, self.facts["dim"], check) for name in ("images", "captions")
        )

    @property
    def db(self) -> sqlite3.Connection:
        """The connection. Raises DamagedError if the index was deleted or replaced.

        SQLite would still read the deleted file, whose slots do not belong to the vector files that are in the folder now.
        """
        self._check()
        return self._db

    @classmethod
    def create(cls, folder: Path, run: "LoadedRun") -> "Database":
        """Open an index, or start one. Raises UserError if another run made it."""
        if not (path := folder / DATABASE).exists():
            facts = run_fingerprint(run) | {"columns": []}
            with (
                index_errors(folder),
                atomic_file(path) as new,
                contextlib.closing(sqlite3.connect(new)) as db,
                db,
            ):
                db.executescript(SCHEMA)
                db.executemany(
                    "INSERT INTO fact VALUES (?, ?)",
                    [(name, json.dumps(fact)) for name, fact in facts.items()],
                )
        database = cls.open(folder)
        database.check(run)
        if (name := name_of(run.folder)) != database.facts["run"]:  # the run was moved
            with database.changing(), index_errors(folder), database.db:
                database.write_fact("run", name)
            database.facts["run"] = name
        return database

    @classmethod
    def open(cls, folder: Path, *, verified: bool = True) -> "Database":
        """Open an index. Raises UserError, also if a file differs from its checksum.

        verified: whether to compare the files with their checksums.
        """
        path = folder / DATABASE
        if not path.is_file():
            inside = sorted(folder.glob(f"*/{DATABASE}"))  # as in the folder of `eve try`
            source, out = (
                (folder, f"{folder.absolute().name}.index")
                if folder.is_dir()
                else ("FOLDER", folder)
            )
            near = did_you_mean(
                folder.name,
                [each.parent.name for each in folder.absolute().parent.glob(f"*/{DATABASE}")],
            )
            fix = f"{near} eve index {source} --run RUN --out {out} makes one".strip()
            fix = f"did you mean '{inside[0].parent}'?" if inside else fix
            raise UserError(
                f"{folder}: {f'holds no {DATABASE}' if folder.is_dir() else 'no such index'}; {fix}"
            )
        with index_errors(folder):
            if verified:
                verify(folder)
            check = functools.partial(_refuse_another, path.absolute(), path.stat().st_ino)
            db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                check_same_thread=sqlite3.threadsafety < 3,
            )
            found = db.execute("SELECT value FROM fact WHERE name = 'format'").fetchall()
            if found == [(str(FORMAT),)]:
                return cls(folder, db, check)
            db.close()
        raise UserError(
            f"{folder}: is not in the format of version {__version__} of eve_vl; {recreate_hint(folder)}"
        )

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Withdraw the checksums while files change, and write new ones at the end."""
        with index_errors(self.folder), _READING:
            write_file(self.folder / CHECKSUMS, "{}")
        try:
            yield
        finally:
            with (
                contextlib.suppress(OSError, DamagedError),
                _READING,
            ):  # without them, nothing is verified
                self._check()
                write_file(self.folder / CHECKSUMS, json.dumps(_computed(self.folder)))

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of an SQL query. Raises DamagedError."""
        with index_errors(self.folder):
            return self.db.execute(query, values).fetchall()

    def read_fact(self, name: str) -> Any:
        """Return the current value of a fact, None if there is none."""
        values = self.rows("SELECT value FROM fact WHERE name = ?", [name])
        return json.loads(values[0][0]) if values else None

    def write_fact(self, name: str, value: Any) -> None:
        """Store a fact, in the open transaction."""
        self.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", [name, json.dumps(value)])

    def is_of(self, run: "LoadedRun") -> bool:
        """Return whether the index was made by these weights and with this tokenizer."""
        own = run_fingerprint(run)
        return all(self.facts[name] == own[name] for name in ("weights", "tokenizer", "dim"))

    def wait_for_lock(self, seconds: float) -> None:
        """Set how long to wait for another process that writes; SQLite's default is 5 s."""
        self.db.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")

    def check(self, run: "LoadedRun") -> None:
        """Raise UserError if the index was made by other weights or another tokenizer."""
        if not self.is_of(run):
            made = f"{self.facts['run']}, step {self.facts['step']}"
            problem = f"was made by another run ({made}) than {run.shown}, step {run.step}; their features do not compare"
            raise UserError(
                f"{self.folder}: {problem}; name that run, or make another index with another --out"
            )


def verify(folder: Path) -> None:
    """Compare the files of an index with their checksums.

    Raises OSError or DamagedError.
    """
    with _READING:
        known = checksums(folder)
        found = _computed(folder) if known else {}
    damaged = [name for name in known if found.get(name) != known[name]]
    if damaged and checksums(folder) == known:  # else an update has begun
        problem = "is damaged, or was changed by another program: it differs from its checksum"
        raise DamagedError(f"{folder / damaged[0]}: {problem}; {recreate_hint(folder)}")


def checksums(folder: Path) -> dict[str, int]:
    """Return the checksums of the files of an index; empty if they are not known."""
    with contextlib.suppress(UserError):
        return read_json(folder / CHECKSUMS, dict)
    return {}


def _computed(folder: Path) -> dict[str, int]:
    """Return the checksums that the files have now. Raises OSError."""
    return {name: checksum(folder / name) for name in CHECKED if (folder / name).exists()}


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file. Raises OSError."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            value = zlib.crc32(
                part, value
            )  # twice as fast as SHA-256: 0.16 s instead of 0.34 s for 512 MiB (EPYC)
    return value


def digest_of(data: bytes) -> bytes:
    """Return the hash that identifies an image's bytes.

    Half of SHA-256, because processors have instructions for it.
    """
    return hashlib.sha256(data).digest()[:16]


def recreate_hint(folder: Path) -> str:
    """Return the advice to delete an index and make it again."""
    return f"make it again: delete {folder}, then eve index SOURCE … --run RUN --out {folder}"


def _refuse_another(path: Path, inode: int) -> None:
    """Raise DamagedError if the database at `path` is not the one that was opened."""
    if not path.exists() or path.stat().st_ino != inode:
        problem = f"was {'replaced' if path.exists() else 'deleted'} since it was opened"
        raise DamagedError(
            f"{path}: {problem}; open the index again, or restart the server", is_gone=True
        )


@contextlib.contextmanager
def index_errors(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the disk into DamagedError."""
    try:
        yield
    except sqlite3.Error as error:
        where, reason = folder / DATABASE, str(error)
    except OSError as error:
        where, reason = error.filename or folder, error.strerror or str(error)
    else:
        return
    advice = next(
        (f"; {advice}" for errors, advice in ADVICE.items() if re.search(errors, reason)), ""
    )
    raise DamagedError(
        f"{where}: {reason}{advice.format(recreate=recreate_hint(folder))}",
        is_locked="locked" in reason,
    )


def run_fingerprint(run: "LoadedRun") -> dict[str, Any]:
    """Return the facts by which an index recognises its run."""
    return {
        "format": FORMAT,
        "version": __version__,
        "run": name_of(run.folder),
        "step": run.step,
        "weights": _sha256(run, "model.safetensors"),
        "tokenizer": _sha256(run, "tokenizer.json"),
        "dim": run.task.feature_dim,
    }


def _sha256(run: "LoadedRun", name: str) -> str:
    """Return the checksum of a run's file.

    Loading has already verified the stored one of the weights.
    """
    from eve_vl.train import checkpoint

    return checkpoint.read_state(run.folder).get("sha256", {}).get(name) or checkpoint.checksum(
        run.folder / name
    )


def source_name(spec: str | Path) -> str:
    """Return a source's name that holds in any working folder.

    Raises UserError for generated data.
    """
    if generated(str(spec)) is not None and ":" in str(spec) and not os.path.exists(spec):  # noqa: PTH110 (any text)
        fix = "name folders of images, tables or shards (eve data write scenes captions FOLDER writes some)"
        raise UserError(f"{spec}: is generated data, which has no files to index; {fix}")
    return absolute_spec(str(spec))
