"""The verb average: a run whose weights are the average of several."""

from pathlib import Path

from tyro.conf import Positional

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user
from eve_vl.utils.frozen import Frozen


class AverageArgs(Frozen):
    """Flags of `eve average`."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or their checkpoints, that started from the same weights."""
    out: Path
    """New run folder."""


def run_average(args: AverageArgs) -> None:
    """Average the weights of fine-tunings of one run: eve average RUN RUN … --out RUN."""
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.average_runs import average
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    paths = [run_path(run) for run in args.runs]
    # of a run and its best/, and of a link and what it points to
    weights = {chosen_checkpoint(path).resolve() for path in paths}
    if len(weights) < max(2, len(paths)):
        raise UserError(
            "name at least two runs, each once, "
            "for example eve average runs/seed_0 runs/seed_1 --out runs/average"
        )
    average(paths, expand_user(args.out))
    print_line(f"{args.out}: the average of {len(args.runs)} runs")
