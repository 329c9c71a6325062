"""The run of an index."""

from pathlib import Path
from typing import TYPE_CHECKING

from eve_vl.builtin.names import folder_of, is_hub_name
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user

if TYPE_CHECKING:
    from eve_vl.eve import Eve


def load_encoder(folder: Path, run: Path | None, device: str) -> "Eve":
    """Return an `Eve` of a run, by default of the run that made the index. Raises UserError."""
    run = run or _run_of_index(folder)
    from eve_vl.eve import Eve

    return Eve.load(run, device)


def _run_of_index(folder: Path) -> Path:
    """Return the run that made an index. Raises UserError if it is gone."""
    from eve_vl.search.database import Database

    folder = expand_user(folder)
    database = Database.open(folder, verified=False)  # a search verifies it later
    run = Path(database.made_by.run)
    if not is_hub_name(run) and not folder_of(run).exists():
        raise UserError(
            f"{run}: no such run, which made {folder}; "
            "name its new folder: --run RUN, or eve serve RUN --index INDEX"
        )
    return run
