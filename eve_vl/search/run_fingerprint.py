"""The facts by which an index recognises the run that made it."""

from typing import TYPE_CHECKING

from eve_vl import __version__
from eve_vl.builtin.names import name_of
from eve_vl.search.schema import FORMAT
from eve_vl.utils.frozen import Frozen

if TYPE_CHECKING:  # opening an index imports no torch, which takes seconds
    from eve_vl.run.loading import LoadedRun


class RunFingerprint(Frozen):
    """The facts by which an index recognises the run that made it."""

    format: int = FORMAT
    version: str = __version__
    run: str
    step: int
    weights: str
    """Checksum of the weights."""
    tokenizer: str
    """Checksum of the tokenizer."""
    dim: int
    """Width of features."""

    @classmethod
    def of(cls, run: "LoadedRun") -> "RunFingerprint":
        """Return the fingerprint of a run."""
        return cls(
            run=name_of(run.folder),
            step=run.step,
            weights=_sha256(run, "model.safetensors"),
            tokenizer=_sha256(run, "tokenizer.json"),
            dim=run.task.feature_dim,
        )

    def fits(self, run: "LoadedRun") -> bool:
        """Return whether features of a run compare with those of this one."""
        of_run = RunFingerprint.of(run)
        has_same_files = self.weights == of_run.weights and self.tokenizer == of_run.tokenizer
        return has_same_files and self.dim == of_run.dim


def _sha256(run: "LoadedRun", name: str) -> str:
    """Return the checksum of a run's file.

    Loading has already verified the stored one of the weights.
    """
    from eve_vl.train import checkpoint_files

    stored = checkpoint_files.read_state(run.folder).get("sha256", {})
    return stored.get(name) or checkpoint_files.checksum(run.folder / name)
