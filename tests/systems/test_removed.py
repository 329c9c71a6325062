"""EVE without the folder of related systems."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eve_vl

IMPORT_ALL = """
import importlib, pkgutil, eve_vl
for module in pkgutil.walk_packages(eve_vl.__path__, "eve_vl."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
USE = """
from eve_vl.cli.main import main
from eve_vl.config.plugins import installed
from eve_vl.recipes.registry import EITHER, recipes

print("recipes", *recipes(EITHER))
print("generators", *installed("generators"))
SMALL = ["--train.batch-size", "4", "--data.val-samples", "8", "--train.val-every", "2"]
main(["pretrain", "tiny", "--out", "run", "--train.steps", "2", *SMALL])
main(["evaluate", "masked_signal", "run", "--samples", "8"])
main(["data", "write", "scenes", "captions", "images", "--rows", "3"])
main(["data", "check", "images"])
main(["index", "images", "--run", "builtin:drawings", "--out", "images.index"])
main(["search", "images.index", "a red circle", "--top", "2"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, but without its systems."""
    folder = tmp_path_factory.mktemp("removed")
    package = Path(eve_vl.__file__).parent
    ignored = shutil.ignore_patterns("systems", "__pycache__")
    shutil.copytree(package, folder / "eve_vl", ignore=ignored)
    return folder


def run(folder: Path, code: str) -> str:
    """Return what some code prints that imports the package of this folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported(folder):
    run(folder, IMPORT_ALL)


def test_training_evaluation_and_search_work(folder):
    output = run(folder, USE)
    lines = dict(line.split(" ", 1) for line in output.splitlines()[:2])
    recipes = lines["recipes"].split()
    assert {"tiny", "base", "demo_vqa"} <= {*recipes}
    assert not [name for name in recipes if name.startswith(("vlmo", "mlim", "m3ae", "medflip"))]
    assert lines["generators"] == "scenes"
    assert "mlm_acc" in output
    assert output.count(".png") >= 2
