"""Near-duplicates among the images of an index."""

import sqlite3

import numpy as np

from eve_vl.data.near_duplicates import NUM_BYTES, first_near_duplicates


def mark_near_duplicates(db: sqlite3.Connection) -> None:
    """Store the first near-duplicate of new images, and of those that lost theirs."""
    if db.execute("SELECT 1 FROM feature WHERE near IS NULL").fetchone() is None:
        return
    # arrays, because lists of rows cost 0.1 kB more per image at the peak
    rows = db.execute("SELECT slot, coalesce(near, -1) FROM feature ORDER BY slot")
    marks = np.fromiter(rows, np.dtype([("slot", "i8"), ("near", "i8")]))
    slots = marks["slot"]
    near_before = marks["near"]
    prints = (data for (data,) in db.execute("SELECT thumbprint FROM feature ORDER BY slot"))
    prints_NC = np.fromiter(prints, f"S{NUM_BYTES}", len(slots)).view(np.uint8)
    prints_NC = prints_NC.reshape(len(slots), -1)

    first_before_N = np.where(near_before < 0, -1, np.searchsorted(slots, near_before))
    near = slots[first_near_duplicates(prints_NC, first_before_N)]
    is_changed = near != near_before
    changed = zip(near[is_changed].tolist(), slots[is_changed].tolist(), strict=True)
    db.executemany("UPDATE feature SET near = ? WHERE slot = ?", changed)
