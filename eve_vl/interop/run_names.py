"""Names of runs become folders here, once, where the words of a user come in.

The command line, `Eve.load`, `hf.from_run` and `eve learn` call `run_path`. Everything below them
takes folders.
"""

from pathlib import Path

from eve_vl.builtin.names import existing_folder, folder_of, is_hub_name
from eve_vl.interop.hub_models import download_as_run
from eve_vl.utils.file_io import expand_user


def path_of(name: str | Path) -> Path:
    """Return the folder of builtin:NAME or hf:ORG/NAME, and any other path, which may not exist,
    unchanged.

    Downloads and converts a published model at its first use. Raises UserError.
    """
    if is_hub_name(name):
        return download_as_run(str(name))
    return folder_of(name)


def run_path(name: str | Path) -> Path:
    """Return the existing folder of a path, builtin:NAME or hf:ORG/NAME.

    Downloads and converts a published model at its first use. Raises UserError.
    """
    if is_hub_name(name):
        return download_as_run(str(name))
    return existing_folder(expand_user(name))
