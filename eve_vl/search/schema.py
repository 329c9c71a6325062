"""The tables of an index's SQLite database.

fact: the run's fingerprint, the names of all columns, the background of scores and, in a large
index, its cells, as JSON.
feature: near is the first slot of a near-duplicate, perhaps its own; NULL: not compared yet.
cell_change: slots whose features came or went since the cells were made.
image: path of its file or shard; start in the shard (NULL: it is the file); size; time of the
file's last change of content, name or permissions (NULL: not read, or no file). An unreadable image
has a reason instead of a slot.
image_words: by slot of an image, its captions, the names of its files and the values of its
columns, one a line each.
text: distinct captions.
caption: one row of a source about an image: a caption or NO_CAPTION, and {"column": "value", …}.
"""

FORMAT = 5  # counts up when older files cannot be read any more, or when features change
CELLS_FACT = "cells"  # name of the fact about the cells of a large index (cells.py)
NO_CAPTION = -1

TOKENIZER = "tokenize = 'porter unicode61 remove_diacritics 2'"
_HAS_CELLS = f"EXISTS (SELECT 1 FROM fact WHERE name = '{CELLS_FACT}')"
_NOTE_SLOT = f"ON feature WHEN {_HAS_CELLS} BEGIN INSERT OR IGNORE INTO cell_change VALUES"

SCHEMA = f"""
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE source (id INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE, reading TEXT NOT NULL);
CREATE TABLE feature (slot INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, \
thumbprint BLOB NOT NULL, near INTEGER);
CREATE TABLE image (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, name TEXT NOT NULL, row INTEGER NOT NULL, \
path TEXT, start INTEGER,
    size INTEGER, changed INTEGER, slot INTEGER, reason TEXT, UNIQUE (source, name)
);
CREATE INDEX image_slot ON image (slot);
CREATE TABLE cell_change (slot INTEGER PRIMARY KEY);
CREATE TRIGGER feature_new AFTER INSERT {_NOTE_SLOT} (new.slot); END;
CREATE TRIGGER feature_gone AFTER DELETE {_NOTE_SLOT} (old.slot); END;
CREATE TABLE text (slot INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE caption (
    image INTEGER NOT NULL, slot INTEGER NOT NULL, columns TEXT NOT NULL, \
PRIMARY KEY (image, slot, columns)
) WITHOUT ROWID;
CREATE INDEX caption_slot ON caption (slot);
CREATE VIRTUAL TABLE image_words USING fts5 (captions, names, columns, {TOKENIZER});
INSERT INTO image_words (image_words, rank) VALUES ('rank', 'bm25(1.0, 0.5, 0.25)');
CREATE VIRTUAL TABLE text_words USING fts5 (text, content = 'text', content_rowid = 'slot', \
{TOKENIZER});
CREATE TRIGGER text_new AFTER INSERT ON text BEGIN
    INSERT INTO text_words (rowid, text) VALUES (new.slot, new.text);
END;
CREATE TRIGGER text_gone AFTER DELETE ON text BEGIN
    INSERT INTO text_words (text_words, rowid, text) VALUES ('delete', old.slot, old.text);
END;
"""
