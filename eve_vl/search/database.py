"""An index on the disk: a folder of one SQLite database, which knows what there is, and of blocks of features.

An image's content has one slot in the blocks, however many files show it. Features are on the disk before the database
speaks of them: what a kill, a crash or a full disk interrupts leaves rows of blocks that nobody knows, which are written anew.
"""

import contextlib
import functools
import hashlib
import json
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eve_vl import __version__, builtin
from eve_vl.run.loading import LoadedRun
from eve_vl.search.vectors import VectorFile, rebuild_hint
from eve_vl.train.checkpoint import read_state
from eve_vl.utils.atomic_io import atomic_file
from eve_vl.utils.errors import DamagedError, UserError
from eve_vl.utils.safe_io import open_ordinary

DATABASE = "index.sqlite"
FORMAT = 2  # to be counted up whenever older files could no longer be read or features would be others
SCHEMA = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE source (id INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE, reading TEXT NOT NULL);
CREATE TABLE feature (slot INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, look BLOB NOT NULL, near INTEGER);
CREATE TABLE image (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, name TEXT NOT NULL, row INTEGER NOT NULL, path TEXT, start INTEGER,
    size INTEGER, changed INTEGER, slot INTEGER, reason TEXT, UNIQUE (source, name)
);
CREATE INDEX image_slot ON image (slot);
CREATE TABLE text (slot INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE caption (
    image INTEGER NOT NULL, slot INTEGER NOT NULL, columns TEXT NOT NULL, PRIMARY KEY (image, slot, columns)
) WITHOUT ROWID;
CREATE INDEX caption_slot ON caption (slot);
"""
"""image: `path` of its file or its shard, where it starts there (NULL: it is the file), its size and when its file was
changed (NULL: it was not looked at, or has no file); broken ones have a reason instead of a slot. near: the first slot of a
image that is almost the same, perhaps its own; NULL: not compared yet. text: distinct captions.
caption: what a row of a source says of an image: a caption, or NO_CAPTION, and its columns, {"name": "value", …}."""
NO_CAPTION = -1


class Database:
    """The open database and the blocks of an index."""

    def __init__(self, folder: Path, db: sqlite3.Connection, check: Callable[[], None]):
        """check: raises DamagedError if the database in the folder is not the open one."""
        self.folder, self._db, self._check = folder, db, check
        weakref.finalize(self, db.close)
        self.facts: dict[str, Any] = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM fact")}
        self.images, self.texts = (VectorFile(folder, name, self.facts["dim"], check) for name in ("images", "captions"))

    @property
    def db(self) -> sqlite3.Connection:
        """The database. Raises DamagedError if the index was deleted since it was opened, and perhaps made anew: SQLite stays
        with the deleted file, whose slots say nothing of the blocks that lie in the folder now."""
        self._check()
        return self._db

    @classmethod
    def create(cls, folder: Path, run: LoadedRun) -> "Database":
        """Open an index, or begin one. Raises UserError if it is another run's."""
        if not (folder / DATABASE).exists():
            with index_errors(folder), atomic_file(folder / DATABASE) as temporary:
                temporary.unlink(missing_ok=True)
                with contextlib.closing(sqlite3.connect(temporary)) as db, db:
                    db.executescript(SCHEMA)
                    db.executemany(
                        "INSERT INTO fact VALUES (?, ?)",
                        [(name, json.dumps(fact)) for name, fact in run_fingerprint(run).items()],
                    )
        store = cls.open(folder)
        store.check(run)
        if (name := builtin.name_of(run.folder)) != store.facts["run"]:  # it was moved
            with index_errors(folder), store.db:
                store.db.execute("UPDATE fact SET value = ? WHERE name = 'run'", [json.dumps(name)])
            store.facts["run"] = name
        return store

    @classmethod
    def open(cls, folder: Path) -> "Database":
        """Open an index. Raises UserError."""
        path = folder / DATABASE
        if not path.is_file():
            missing = f"holds no {DATABASE}; is it an index?" if folder.is_dir() else "no such index"
            if inside := sorted(folder.glob(f"*/{DATABASE}")):  # such as of what `eve try` keeps
                raise UserError(f"{folder}: holds no {DATABASE}; did you mean '{inside[0].parent}'?")
            raise UserError(f"{folder}: {missing} (eve index FOLDER --run RUN --out {folder} makes one)")
        with index_errors(folder):
            check = functools.partial(_refuse_another, path.absolute(), _number_of(path))
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, check_same_thread=sqlite3.threadsafety < 3)
            with contextlib.closing(db.execute("SELECT name, value FROM fact WHERE name IN ('format', 'version')")) as rows:
                found = dict(rows)
            if found.get("format") == str(FORMAT):
                return cls(folder, db, check)
            db.close()
        version, form = (found.get(name, "unknown").strip('"') for name in ("version", "format"))
        made = f"{folder}: was made by version {version} of eve_vl in format {form}"
        raise UserError(f"{made}, this is version {__version__}, format {FORMAT}; {rebuild_hint(folder)}")

    def is_of(self, run: LoadedRun) -> bool:
        """Whether the index was made by these weights and with this tokenizer."""
        return all(
            self.facts[name] == value for name, value in run_fingerprint(run).items() if name in ("weights", "tokenizer", "dim")
        )

    def wait_for_lock(self, seconds: float) -> None:
        """Set how long to wait while somebody else writes; SQLite's default is 5 s."""
        self.db.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")

    def check(self, run: LoadedRun) -> None:
        """Raise UserError if the index was made by other weights or with another tokenizer."""
        if not self.is_of(run):
            made = f"{self.facts['run']}, step {self.facts['step']}"
            raise UserError(
                f"{self.folder}: was made by another run ({made}) than {run.shown}, step {run.step}; features of different "
                "runs do not compare: name that run, or make another index: eve index SOURCE … --run RUN --out OTHER"
            )


def _number_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others for as long as it is open; None if there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _refuse_another(path: Path, number: tuple[int, int] | None) -> None:
    """Raise DamagedError if a database is another one than was opened."""
    if (found := _number_of(path)) != number:
        what = "was deleted" if found is None else "is another one"
        raise DamagedError(f"{path}: {what} since it was opened; open the index again, or start the server anew")


@contextlib.contextmanager
def index_errors(folder: Path) -> Iterator[None]:
    """Make what goes wrong with the files of an index meanwhile a DamagedError."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        is_damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such table" in str(error)  # of 0 bytes
        is_locked = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        busy = "; somebody else uses it: run the same command again once that is done, what is in the index stays"
        advice = f"; {rebuild_hint(folder)}" if is_damaged else busy if is_locked else _advice(str(error))
        raise DamagedError(f"{folder / DATABASE}: {error}{advice}", is_locked=is_locked) from None
    except OSError as error:
        name = error.filename or folder
        raise DamagedError(f"{name}: {error.strerror or error}{_advice(str(error.strerror))}") from None


def _advice(reason: str) -> str:
    is_full = any(word in reason for word in ("full", "No space", "quota", "disk I/O"))
    return "; what is in the index stays, make room and run the same command again" if is_full else ""


def run_fingerprint(run: LoadedRun) -> dict[str, Any]:
    """Return what an index knows of the run that makes it."""
    return {
        "format": FORMAT,
        "version": __version__,
        "run": builtin.name_of(run.folder),
        "step": run.step,
        "weights": _sha256(run, "model.safetensors"),
        "tokenizer": _sha256(run, "tokenizer.json"),
        "dim": run.task.feature_dim,
    }


def _sha256(run: LoadedRun, name: str) -> str:
    """Return the checksum of a file of a run, which loading has compared with the file's if it is that of the weights."""
    known = read_state(run.folder).get("sha256", {})
    if name in known:
        return known[name]
    with open_ordinary(run.folder / name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
