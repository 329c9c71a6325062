"""The verb evaluate zero_shot: classification with prompts, without training."""

from typing import Literal

from eve_vl.cli.flags import MeasureArgs, RunArgs
from eve_vl.cli.printed_numbers import print_numbers, write_numbers
from eve_vl.config import DataConfig
from eve_vl.utils.errors import UserError


class ZeroShotArgs(MeasureArgs, RunArgs):
    """Flags of `eve evaluate zero_shot`."""

    data: tuple[str, ...] = ()
    """Labelled sources: a folder per class, tables with labels, phantoms:test."""
    prompts: str = ""
    """JSON file {"class": ["prompt", …], …}; phantoms: prompts of the built-in phantoms."""
    by: Literal["mean", "max"] = "mean"
    """Score of a class: mean or max over its prompts."""


def run_zero_shot(args: ZeroShotArgs) -> None:
    """Classify with prompts: eve evaluate zero_shot RUN --data PATH --prompts FILE."""
    if not args.data or not args.prompts:
        raise UserError(
            "zero_shot needs labelled images, --data LABELED, "
            "and prompts for each class, --prompts FILE"
        )
    from eve_vl.data.opening import open_sources
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.leaks import leaks
    from eve_vl.run.loading import load_run
    from eve_vl.tasks.baseline import comparison_of
    from eve_vl.tasks.contrast.prompts import read_prompts
    from eve_vl.tasks.contrast.zero_shot import BASELINES, zero_shot
    from eve_vl.train.devices import pick_device

    read_prompts(args.prompts)  # fail before loading the run
    run = load_run(run_path(args.run), pick_device(args.device))
    image_size = run.config.input.image_size
    sources = open_sources(args.data, DataConfig(**args.reading()), image_size, "labels")
    measured = zero_shot(
        run,
        args.prompts,
        sources,
        args.samples,
        by=args.by,
        skip_invalid=args.skip_invalid,
        data=" ".join(args.data),
    )
    numbers = measured.numbers
    notes = leaks(run, sources)
    num_unlabelled = numbers.get("num_unlabelled")
    if num_unlabelled:
        notes.append(f"rows without a label, left out: {num_unlabelled:,}")
    print_numbers(numbers, measured.data, notes, comparison_of(numbers, BASELINES))
    write_numbers(args.json, numbers, measured.data)
