"""The verb export: a run as ONNX files."""

from pathlib import Path

from tyro.conf import Positional

from eve_vl.cli.flags import JsonArgs, RunArgs
from eve_vl.cli.output_files import write_json
from eve_vl.utils.console import print_line


class ExportArgs(JsonArgs, RunArgs):
    """Flags of `eve export`."""

    folder: Positional[Path]
    """New folder for the files."""
    parts: tuple[str, ...] = ()
    """Parts to export, e.g. image_encoder; default: all that the run's heads allow."""


def run_export(args: ExportArgs) -> None:
    """Export a run to ONNX files checked against torch: eve export RUN FOLDER [flags]."""
    from eve_vl.interop.onnx import export_run
    from eve_vl.interop.run_names import run_path

    exported = export_run(run_path(args.run), args.folder, args.parts)
    print_line(*map(str, exported))
    values = {}
    for file in exported:
        values[file.name] = {"bytes": file.bytes, "largest_difference": file.largest_difference}
    write_json(args.json, values)
