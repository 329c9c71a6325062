"""Names of splits in published medical data."""

SPLITS = ("train", "val", "test")
ALIASES = {"validation": "val", "valid": "val", "validate": "val", "dev": "val"}


def split_name(name: str) -> str:
    """Return our name of a split."""
    return ALIASES.get(name, name)
