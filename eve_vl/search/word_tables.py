"""The full-text tables of an index and their updates.

`image_words` has one row per slot of an image, `text_words` one per caption. FTS5 splits words,
removes accents and stems English words (Porter).
"""

import sqlite3
from pathlib import Path

IMAGE_WORDS = "image_words"
TEXT_WORDS = "text_words"

_EVENTS = {
    "AFTER INSERT ON image": "VALUES (new.slot)",
    "AFTER UPDATE ON image": "VALUES (old.slot), (new.slot)",
    "AFTER DELETE ON image": "VALUES (old.slot)",
    "AFTER INSERT ON caption": "SELECT slot FROM image WHERE id = new.image",
    "AFTER DELETE ON caption": "SELECT slot FROM image WHERE id = old.image",
}
"""Changes of the words of an image → the slots whose words they change."""


def _watch_script() -> str:
    """Return SQL that records slots whose words change."""
    statements = ["CREATE TEMP TABLE touched (slot INTEGER);"]
    for number, (event, slots) in enumerate(_EVENTS.items()):
        action = f"BEGIN INSERT INTO touched {slots}; END;"
        statements.append(f"CREATE TEMP TRIGGER touched_{number} {event} {action}")
    return "".join(statements)


def _unwatch_script() -> str:
    """Return SQL that undoes `_watch_script`."""
    statements = [f"DROP TRIGGER IF EXISTS temp.touched_{n};" for n in range(len(_EVENTS))]
    statements.append("DROP TABLE IF EXISTS temp.touched;")
    return "".join(statements)


def _joined(value: str, tables: str) -> str:
    """Return SQL of the distinct values of a changed slot, one a line."""
    values = f"SELECT DISTINCT {value} AS value FROM {tables} WHERE image.slot = changed.slot"
    return f"(SELECT group_concat(value, char(10)) FROM ({values} ORDER BY 1))"


WATCH = _watch_script()
UNWATCH = _unwatch_script()

_CAPTIONS_OF_IMAGE = "image JOIN caption ON caption.image = image.id"
REFRESH = f"""INSERT INTO image_words (rowid, captions, names, columns) SELECT slot,
{_joined("text", f"{_CAPTIONS_OF_IMAGE} JOIN text ON text.slot = caption.slot")},
{_joined("stem(CASE WHEN start IS NULL THEN path END)", "image")},
{_joined("json_each.value", f"{_CAPTIONS_OF_IMAGE} JOIN json_each(caption.columns)")}
FROM (SELECT DISTINCT slot FROM touched) AS changed WHERE slot IN (SELECT slot FROM image)"""


def watch(db: sqlite3.Connection) -> None:
    """Record the slots of images whose words change, for `refresh`."""
    db.create_function("stem", 1, lambda path: path and Path(path).stem, deterministic=True)
    db.executescript(WATCH)


def refresh(db: sqlite3.Connection) -> None:
    """Write the words of images that have changed since the last call.

    It runs within the open transaction.
    """
    db.execute("DELETE FROM image_words WHERE rowid IN (SELECT slot FROM touched)")
    db.execute(REFRESH)
    db.execute("DELETE FROM touched")


def quoted(text: str) -> str:
    """Return a text with any letters as a phrase of an FTS5 expression."""
    return '"' + text.replace("\0", " ").replace('"', " ") + '"'
