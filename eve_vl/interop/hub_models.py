"""Published models hf:ORG/NAME: downloaded and converted once, into the cache."""

from pathlib import Path

from eve_vl.builtin.names import HUB_PREFIX
from eve_vl.interop.clip import CLIP, read_folder, weight_files
from eve_vl.interop.clip_settings import is_published
from eve_vl.interop.convert import import_weights
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.run.start_folder import hub_cache_folder
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import reporting_write_errors
from eve_vl.utils.file_lock import file_lock

SETTINGS_FILES = ("*.json", "*.txt", "*.model")  # config, preprocessing, tokenizer


def download_as_run(name: str) -> Path:
    """Return the run folder of hf:ORG/NAME in the cache, after its first download.

    Raises UserError.
    """
    run = hub_cache_folder(name)
    if (run / "best").is_dir():
        return run
    with reporting_write_errors(run.parent):
        run.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(run.with_name(f"{run.name}.lock"), waits=True):  # for another download
        if not (run / "best").is_dir():
            folder = download(name.removeprefix(HUB_PREFIX))
            args = ConvertArgs(source=folder, target=run)
            summary = import_weights([CLIP], read_folder(folder), args)
            print_line(f"{name}: {summary}, kept in {run}")
    return run


def download(repository: str) -> Path:
    """Return the folder of a model's files.

    Raises UserError, before the weights if they are of another kind.
    """
    where = HUB_PREFIX + repository
    try:
        folder = _download(repository)
    except UserError:  # of a damaged config
        raise
    except Exception as error:  # of the network, in the library's and other libraries' classes
        fix = "check the name and the internet connection"
        if isinstance(error, ModuleNotFoundError):
            fix = "pip install 'eve-vl[hf]'"
        raise UserError(f"{where}: cannot be downloaded ({type(error).__name__}); {fix}") from None
    if folder is None:
        raise UserError(
            f"{where}: is none of CLIP, SigLIP and SigLIP 2, of transformers or open_clip; name "
            "another model"
        )
    return folder


def _download(repository: str) -> Path | None:
    """Return the folder of a model's files, None if it is of another kind."""
    import huggingface_hub

    settings = [*SETTINGS_FILES]
    folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=settings))
    if not is_published(folder):
        return None
    weights = weight_files(huggingface_hub.list_repo_files(repository))
    return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*settings, *weights]))
