"""The data check of `eve learn` keeps copies of an image together and notes near-duplicates."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.config import HELD_OUT, DataConfig
from eve_vl.learn.clock import Clock
from eve_vl.learn.data_check import SPLIT_FILE, check_data
from eve_vl.learn.plan import Plan, Request
from helpers.learning import write_rows
from helpers.tiny_runs import noise

NUM_IMAGES = 60
NUM_COPIES = 20


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Images, copies of the first ones and smaller versions of the last ones, with captions."""
    rows = []
    for number in range(NUM_IMAGES):
        image = Image.fromarray(noise(number, 6, 6)).resize((80, 60), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{number}.png")
        if number < NUM_COPIES:
            shutil.copy(tmp_path / f"{number}.png", tmp_path / f"copy{number}.png")
        else:
            image.resize((40, 30)).save(tmp_path / f"small{number}.png")
    for path in sorted(tmp_path.glob("*.png")):
        rows.append({"image": path.name, "caption": f"an image called {path.stem}"})
    return write_rows(tmp_path / "pairs.jsonl", rows)


def test_copies_are_in_one_part_and_near_duplicates_are_noted(table, tmp_path, capfd):
    request = Request(
        task="search",
        data=DataConfig(train=(str(table),), val=(HELD_OUT,)),
        test=(),
        seconds=600,
        out=tmp_path / "out",
        device="cpu",
    )
    plan = Plan(request, Clock(0.0))
    check_data(plan)
    split = json.loads((tmp_path / "out" / SPLIT_FILE).read_text())
    names = [json.loads(line)["image"] for line in table.read_text().splitlines()]
    (val,) = split["val"]
    (test,) = split["test"]
    parts = {"train": set(names) - {names[row] for row in val + test}}
    parts["val"] = {names[row] for row in val}
    parts["test"] = {names[row] for row in test}
    for number in range(NUM_COPIES):
        pair = {f"{number}.png", f"copy{number}.png"}
        assert any(pair <= part for part in parts.values())
    num_near = 0
    for name in parts["val"] | parts["test"]:
        twin = name.removeprefix("small") if name.startswith("small") else f"small{name}"
        num_near += twin in parts["train"]
    assert num_near > 0
    assert f"{num_near} of {len(val + test)} images are near-duplicates" in capfd.readouterr().out
