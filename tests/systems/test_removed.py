"""EVE without the folder of related systems."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import eve_vl

USE = """
import importlib, pkgutil, eve_vl

for module in pkgutil.walk_packages(eve_vl.__path__, "eve_vl."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

from eve_vl.cli.main import main
from eve_vl.config.plugins import installed
from eve_vl.recipes.registry import EITHER, recipes
from helpers import shortcuts

print("recipes", *recipes(EITHER))
print("generators", *installed("generators"))
SMALL = "--train.steps 2 --train.batch-size 4 --train.val-every 2 --data.val-samples 8"
main(["pretrain", "tiny", "--out", "run", *SMALL.split()])
main(["evaluate", "masked_signal", "run", "--samples", "8"])
main(["data", "write", "scenes", "captions", "images", "--rows", "3"])
main(["data", "check", "images"])
main(["index", "images", "--run", "builtin:drawings", "--out", "images.index"])
main(["search", "images.index", "a red circle", "--top", "2"])
"""


def test_modules_are_imported_and_training_evaluation_and_search_work(tmp_path: Path):
    ignored = shutil.ignore_patterns("systems", "__pycache__")
    shutil.copytree(Path(eve_vl.__file__).parent, tmp_path / "eve_vl", ignore=ignored)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    recipe_line, generator_line = done.stdout.splitlines()[:2]
    recipes = recipe_line.split()[1:]
    assert {"tiny", "base", "demo_vqa"} <= {*recipes}
    assert not [name for name in recipes if name.startswith(("vlmo", "mlim", "m3ae", "medflip"))]
    assert generator_line == "generators scenes"
    assert "mlm_acc" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    assert done.stdout.count(".png") >= 2
