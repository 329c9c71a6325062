"""The verb convert: published weights to a run folder, and a run back."""

from eve_vl.cli.output_files import check_writable
from eve_vl.config.plugins import installed, load_installed
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.utils.console import print_line


def run_convert(args: ConvertArgs) -> None:
    """Turn published weights into a run folder, or a run back: eve convert SRC DST."""
    print_line(f"{args.target}: {_convert(args)}")


def _convert(args: ConvertArgs) -> object:
    """Write the target; return what it became. Raises UserError."""
    from eve_vl.interop.clip import CLIP, read_folder
    from eve_vl.interop.clip_settings import is_published
    from eve_vl.interop.convert import import_weights
    from eve_vl.interop.eve_checkpoints import EVE, export_published
    from eve_vl.interop.foreign_weights import read_tensors
    from eve_vl.interop.image_encoders import IMAGE_ENCODERS
    from eve_vl.interop.run_names import path_of
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    folder = path_of(args.source)
    if is_published(folder):
        return import_weights([CLIP], read_folder(folder), args)
    if folder.is_dir():
        chosen_checkpoint(folder)  # first, since any folder may have been named
        args.refuse_without_effect((), "a run folder")
        check_writable(args.target)
        return export_published(folder, args.target)

    families = []
    for name in installed("converters"):
        family = load_installed("converters", name)
        if family:
            families.append(family)
    families += [CLIP, IMAGE_ENCODERS, EVE]  # EVE takes all and says what is missing
    return import_weights(families, read_tensors(args.source), args)
