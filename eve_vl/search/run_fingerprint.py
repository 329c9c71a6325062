"""The facts by which an index recognises the run that made it."""

from typing import TYPE_CHECKING, Any

from eve_vl import __version__
from eve_vl.builtin.names import name_of
from eve_vl.search.schema import FORMAT

if TYPE_CHECKING:  # opening an index imports no torch, which takes seconds
    from eve_vl.run.loading import LoadedRun

COMPARED = ("weights", "tokenizer", "dim")
"""Facts that are equal whenever features compare."""


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
    from eve_vl.train import checkpoint_files

    stored = checkpoint_files.read_state(run.folder).get("sha256", {})
    return stored.get(name) or checkpoint_files.checksum(run.folder / name)
