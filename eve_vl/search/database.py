"""The SQLite database of an index, and its vector files.

Images with the same bytes share one slot of the vector files. Vectors are on the disk before the
database refers to them: a crash or a full disk leaves rows of vectors that the database does not
know, and the next update overwrites them.
"""

import contextlib
import dataclasses
import functools
import json
import sqlite3
import typing
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eve_vl import __version__
from eve_vl.builtin.names import name_of
from eve_vl.search import checksums
from eve_vl.search.index_files import (
    CAPTION_VECTORS,
    DATABASE,
    IMAGE_VECTORS,
    index_errors,
    recreate_hint,
)
from eve_vl.search.run_fingerprint import RunFingerprint
from eve_vl.search.schema import FORMAT, SCHEMA
from eve_vl.search.vector_file import VectorFile
from eve_vl.utils.errors import DamagedError, UserError, did_you_mean
from eve_vl.utils.file_io import atomic_file, has_fields, parse_json

if TYPE_CHECKING:  # opening an index imports no torch, which takes seconds
    from eve_vl.run.loading import LoadedRun


class Database:
    """The open SQLite database and the vector files of an index."""

    def __init__(self, folder: Path, db: sqlite3.Connection, check: Callable[[], None]):
        """check: raises DamagedError if the folder now holds another database."""
        self.folder = folder
        self._db = db
        self._check = check
        weakref.finalize(self, db.close)
        self.made_by = _read_maker(folder, db)
        dim = self.made_by.dim
        self.images = VectorFile(folder / IMAGE_VECTORS, dim, check)
        self.texts = VectorFile(folder / CAPTION_VECTORS, dim, check)

    @property
    def db(self) -> sqlite3.Connection:
        """The connection. Raises DamagedError if the index was deleted or replaced.

        SQLite would still read the deleted file, whose slots do not belong to the vector files that
        are in the folder now.
        """
        self._check()
        return self._db

    @classmethod
    def create(cls, folder: Path, run: "LoadedRun") -> "Database":
        """Open an index, or start one. Raises UserError if another run made it."""
        if not (folder / DATABASE).exists():
            _create_tables(folder, RunFingerprint.of(run))
        database = cls.open(folder)
        database.require_run(run)
        run_name = name_of(run.folder)
        if run_name != database.made_by.run:  # the run was moved
            with database.changing(), index_errors(folder), database.db:
                database.write_fact("run", run_name)
            database.made_by = dataclasses.replace(database.made_by, run=run_name)
        return database

    @classmethod
    def open(cls, folder: Path, *, verified: bool = True) -> "Database":
        """Open an index. Raises UserError, also if a file differs from its checksum.

        verified: whether to compare the files with their checksums.
        """
        path = folder / DATABASE
        if not path.is_file():
            raise _missing_index_error(folder)
        with index_errors(folder):
            if verified:
                checksums.verify(folder)
            check = functools.partial(_require_inode, path.absolute(), path.stat().st_ino)
            db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                check_same_thread=sqlite3.threadsafety < 3,
            )
            formats = db.execute("SELECT value FROM fact WHERE name = 'format'").fetchall()
            if formats == [(str(FORMAT),)]:
                return cls(folder, db, check)
            db.close()
        raise UserError(
            f"{folder}: is not in the format of version {__version__} of eve_vl; "
            f"{recreate_hint(folder)}"
        )

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Withdraw the checksums while files change, and write new ones at the end."""
        with index_errors(self.folder):
            checksums.withdraw(self.folder)
        try:
            yield
        finally:
            # without checksums, nothing is verified
            with contextlib.suppress(OSError, DamagedError):
                self._check()
                checksums.renew(self.folder)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of an SQL query. Raises DamagedError."""
        with index_errors(self.folder):
            return self.db.execute(query, values).fetchall()

    @property
    def version(self) -> int:
        """A number that changes when another process or connection commits to the index."""
        return self.rows("PRAGMA data_version")[0][0]

    def read_fact(self, name: str) -> Any:
        """Return the current value of a fact, None if there is none."""
        values = self.rows("SELECT value FROM fact WHERE name = ?", [name])
        return json.loads(values[0][0]) if values else None

    def write_fact(self, name: str, value: Any) -> None:
        """Store a fact, in the open transaction."""
        self.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", [name, json.dumps(value)])

    def wait_for_lock(self, seconds: float) -> None:
        """Set how long to wait for another process that writes; SQLite's default is 5 s."""
        self.db.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")

    def is_of(self, run: "LoadedRun") -> bool:
        """Return whether the index was made by these weights and with this tokenizer."""
        return self.made_by.fits(run)

    def require_run(self, run: "LoadedRun") -> None:
        """Raise UserError if the index was made by other weights or another tokenizer."""
        if not self.is_of(run):
            maker = f"{self.made_by.run}, step {self.made_by.step}"
            raise UserError(
                f"{self.folder}: was made by another run ({maker}) than {run.shown}, "
                f"step {run.step}; their features do not compare; "
                "name that run, or make another index with another --out"
            )


def _create_tables(folder: Path, made_by: RunFingerprint) -> None:
    """Write a database without images. Raises DamagedError."""
    facts = {**dataclasses.asdict(made_by), "columns": []}
    values = [(name, json.dumps(value)) for name, value in facts.items()]
    with (
        index_errors(folder),
        atomic_file(folder / DATABASE) as temporary,
        contextlib.closing(sqlite3.connect(temporary)) as db,
        db,
    ):
        db.executescript(SCHEMA)
        db.executemany("INSERT INTO fact VALUES (?, ?)", values)


def _read_maker(folder: Path, db: sqlite3.Connection) -> RunFingerprint:
    """Return the fingerprint of the run that made an index.

    Raises DamagedError, also if another fact is damaged.
    """
    rows = db.execute("SELECT name, value FROM fact")
    try:
        facts = {name: parse_json(value) for name, value in rows}
    except (TypeError, ValueError):
        facts = {}
    types = typing.get_type_hints(RunFingerprint)
    if not has_fields(facts, **types, columns=list):
        raise DamagedError(
            f"{folder / DATABASE}: its table of facts is damaged; {recreate_hint(folder)}"
        )
    return RunFingerprint(**{name: facts[name] for name in types})


def _missing_index_error(folder: Path) -> UserError:
    """Return the error about a folder without a database, with the likeliest fix."""
    problem = f"holds no {DATABASE}" if folder.is_dir() else "no such index"
    inner_databases = sorted(folder.glob(f"*/{DATABASE}"))  # as in the folder of `eve try`
    if inner_databases:
        return UserError(f"{folder}: {problem}; did you mean '{inner_databases[0].parent}'?")

    siblings = folder.absolute().parent.glob(f"*/{DATABASE}")
    fix = did_you_mean(folder.name, [path.parent.name for path in siblings])
    if folder.is_dir():
        command = f"eve index {folder} --run RUN --out {folder.absolute().name}.index"
    else:
        command = f"eve index FOLDER --run RUN --out {folder}"
    return UserError(f"{folder}: {problem}; {f'{fix} {command} makes one'.strip()}")


def _require_inode(path: Path, inode: int) -> None:
    """Raise DamagedError if the database at `path` is not the one that was opened."""
    if not path.exists():
        event = "deleted"
    elif path.stat().st_ino != inode:
        event = "replaced"
    else:
        return
    raise DamagedError(
        f"{path}: was {event} since it was opened; open the index again, or restart the server",
        is_gone=True,
    )
