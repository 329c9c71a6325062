"""Convert three trained runs of scenes into built-in runs.

    python examples/scenes/ship.py runs --out eve_vl/builtin

RUNS holds the run folders scenes, scenes_vqa and scenes_nlvr2. They become `builtin:scenes`,
`builtin:scenes_vqa` and `builtin:scenes_nlvr2`. eve_vl/builtin/scenes/README.md has the commands
that train them. Weights become float16, --init becomes builtin:scenes; all other values stay.
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

from eve_vl.config import Config
from eve_vl.utils.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipping

NAMES = ("scenes", "scenes_vqa", "scenes_nlvr2")


def shipped(name: str, config: Config) -> Config:
    """Return the config of a run with names that hold on any machine."""
    config = dataclasses.replace(config, out=Path("runs") / name)
    if config.init is None:
        return config
    return dataclasses.replace(config, init=Path("builtin:scenes"))


def main() -> None:
    """Write the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder with the run folders " + ", ".join(NAMES))
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundled files")
    args = parser.parse_args()
    try:
        for name in NAMES:
            shipping.ship_run(args.runs / name, args.out / name, partial(shipped, name))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
