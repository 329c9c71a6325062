"""The folder of the run that a config starts from.

`Config.init` keeps the lasting name that the user gave (a path, builtin:NAME or hf:ORG/NAME),
because it is written into config.json. Files are read from the folder that the name stands for.
Nothing is downloaded here.
"""

import re
from pathlib import Path

from eve_vl.builtin.names import HUB_PREFIX, folder_of, is_hub_name
from eve_vl.config import FORMAT
from eve_vl.train.checkpoint_folders import checkpoint_folders, chosen_checkpoint
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import cache_folder

CONVERTER_VERSION = 2
"""Version of interop/clip.py. Raise it when the converted weights or configs change: models are
converted again."""


def start_folder(init: Path) -> Path:
    """Return the folder of an --init run. Raises UserError for an unknown builtin:NAME."""
    if is_hub_name(init):
        return hub_cache_folder(str(init))
    return folder_of(init)


def hub_cache_folder(name: str) -> Path:
    """Return the folder that holds hf:ORG/NAME as a run once it was downloaded and converted.

    A new config format or converter uses another folder. Raises UserError for a malformed name.
    """
    repository = name.removeprefix(HUB_PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"{name}: not the name of a model, such as hf:openai/clip-vit-base-patch32")
    version = f"format-{FORMAT}-converter-{CONVERTER_VERSION}"
    return cache_folder("hf") / version / repository.replace("/", "--")


def settings_folder(init: Path, scratch: bool, out: Path) -> Path:
    """Return the folder with config and tokenizer of an --init run. Raises UserError.

    That is `out` if it can resume; the run folder itself if only its shape is wanted (scratch);
    else its chosen checkpoint.
    """
    if checkpoint_folders(out):
        return out
    folder = start_folder(init)
    has_settings = all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))
    if scratch and has_settings:
        return folder
    return chosen_checkpoint(folder)
