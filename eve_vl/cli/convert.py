"""The verb convert: foreign weights in, ours out."""

from eve_vl import builtin
from eve_vl.cli.common import check_writable, print_line
from eve_vl.config.plugins import installed, load_installed
from eve_vl.interop import ConvertArgs


def run_convert(args: ConvertArgs) -> None:
    """Turn published weights or an image encoder into a run folder, or a run back: eve convert SRC DST [flags]."""
    from eve_vl.interop.convert import import_weights, read_tensors
    from eve_vl.interop.published import EVE, export_published
    from eve_vl.interop.vision import IMAGE_ENCODERS
    from eve_vl.train import checkpoint

    if builtin.located(args.source).is_dir():
        checkpoint.chosen_checkpoint(args.source)  # first, since any folder may have been named
        args.refuse_without_effect((), "a run folder")
        check_writable(args.target)
        print_line(f"{args.target}: {export_published(args.source, args.target)}")
        return
    registered = [load_installed("converters", name) for name in installed("converters")]
    families = [*filter(None, registered), IMAGE_ENCODERS, EVE]  # EVE takes all and says what is missing
    print_line(f"{args.target}: {import_weights(families, read_tensors(args.source), args)}")
