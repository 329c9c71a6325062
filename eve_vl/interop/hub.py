"""Models of a hub as runs: hf:ORG/NAME is downloaded and converted once."""

import os
import re
from pathlib import Path

from eve_vl import builtin
from eve_vl.interop import ConvertArgs
from eve_vl.interop.clip import FAMILY, is_published, read_folder, weight_files
from eve_vl.interop.convert import import_weights
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user

TEXTS = ("*.json", "*.txt", "*.model")  # config, preprocessing, tokenizer


def located(name: str) -> Path:
    """Return the run folder of hf:ORG/NAME in the cache, after its first download.

    The cache is eve-vl/hf in $XDG_CACHE_HOME, by default in ~/.cache. Raises UserError.
    """
    repository = name.removeprefix(builtin.HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"{name}: not the name of a model, such as hf:openai/clip-vit-base-patch32")
    cache = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "eve-vl" / "hf"
    run = cache / repository.replace("/", "--")
    if not (run / "best").is_dir():
        folder = download(repository)
        summary = import_weights([FAMILY], read_folder(folder), ConvertArgs(source=folder, target=run))
        print_line(f"{name}: {summary}, kept in {run}")
    return run


def download(repository: str) -> Path:
    """Return the folder of a model's files.

    Raises UserError, before the weights if they are of another kind.
    """
    where = builtin.HUB + repository
    try:
        import huggingface_hub

        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*TEXTS]))
        if is_published(folder):
            names = weight_files(huggingface_hub.list_repo_files(repository))
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*TEXTS, *names]))
    except UserError:  # of a damaged config
        raise
    except Exception as error:  # of the network, in the library's and other libraries' classes
        is_missing = isinstance(error, ModuleNotFoundError)
        fix = "pip install 'eve-vl[hf]'" if is_missing else "check the name and the internet connection"
        raise UserError(f"{where}: cannot be downloaded ({type(error).__name__}); {fix}") from None
    raise UserError(f"{where}: is none of CLIP, SigLIP and SigLIP 2, of transformers or open_clip; name another model")
