"""What the name of a data source means, as it is typed after --data.train: a generator's split, or something on the disk."""

HELD_OUT = "held-out"
GENERATORS = ("scenes",)


def generated(source: str) -> tuple[str, str] | None:
    """Return the generator and the split that a source names, such as `scenes:val`; None if it names something on the disk.

    A generator without a split means its training rows.
    """
    name, _, split = source.partition(":")
    return (name, split or "train") if name in GENERATORS else None
