"""benchmarks/equal_compute: steps from budgets, differences over seeds, open_clip evaluated like
our own runs."""

import dataclasses
import importlib
import json
import math
import statistics
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.data.augmentations import augment
from eve_vl.data.loader import eval_loader
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import UserError
from helpers.source_files import write_json, write_jsonl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts import each other by name
command = importlib.import_module("equal_compute.run")
arms = importlib.import_module("equal_compute.arms")
data = importlib.import_module("equal_compute.data")
runs = importlib.import_module("equal_compute.cells")
open_clip = importlib.import_module("equal_compute.open_clip_cells")
tables = importlib.import_module("equal_compute.tables")
script = importlib.import_module("equal_compute.open_clip_train")

SCENES = data.scenes(Path(), Path())


NAMES = [
    ["a cat"],
    ["a cat"],
    ["a dog"],
    ["sun"],
    ["sun", "a dog"],
    ["tree"],
    ["house"],
    ["a cat"],
]
QUARTER = arms.Arm((arms.Stage("scenes", 0.25, "--train.batch-size 16"),))


@pytest.fixture
def table(tmp_path) -> Path:
    """A table of eight images of five names, one of them with two."""
    rng = np.random.default_rng(0)
    rows = []
    for number, captions in enumerate(NAMES):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": captions})
    return write_jsonl(tmp_path / "rows.jsonl", rows)


# Arms and runs


def cell_of(tmp_path, arm, jobs=("vqa",)):
    """Return a cell of 100 core-seconds whose steps take half a second."""
    plan = runs.planned("scenes", arm, jobs, SCENES)
    seconds = {stage.key: [4.5, 0.5, 0.05] for stage in plan}
    write_json(tmp_path / "probe.json", seconds)
    return runs.Cell("an arm", "scenes", 100.0, 3, "val", tmp_path, SCENES, plan)


def steps_of(cell):
    """Return the steps of each run of a cell."""
    return {stage["run"]: stage["steps"] for job in cell.jobs for stage in cell.stages(job)}


def test_stages_share_the_budget_and_fine_tuning_gets_the_rest(tmp_path):
    cell = cell_of(tmp_path, QUARTER, ("vqa", "nlvr2"))
    assert [stage.share for stage in cell.plan] == [0.25, 0.75, 0.75]
    assert steps_of(cell) == {
        "0_scenes": 50,
        "vqa": 150,
        "nlvr2": 150,
    }
    assert cell.cost() == 25 + 75 + 75
    configs = cell.configs()
    assert [config.train.steps for config in configs.values()] == [50, 150, 150]
    for config in configs.values():
        assert (config.train.seed, config.train.threads, config.data.num_workers) == (3, 1, 0)
    assert configs["0_scenes"].init is None
    assert configs["vqa"].init == configs["nlvr2"].init == configs["0_scenes"].out
    assert not configs["vqa"].scratch


def test_a_budget_of_pairs_counts_rows_independent_of_step_time(tmp_path):
    timed = cell_of(tmp_path, QUARTER, ("vqa", "nlvr2"))
    cell = dataclasses.replace(timed, budget=6400, unit="pairs")
    steps = {
        "0_scenes": 1600 / 16,
        "vqa": 4800 / 64,
        "nlvr2": 4800 / 32,
    }
    assert steps_of(cell) == steps
    assert cell.cost() == 0.5 * sum(steps.values())  # each step takes half a second
    assert cell.folder.parts[-2:] == ("6400_pairs", "seed_3")
    (tmp_path / "probe.json").unlink()
    assert steps_of(cell) == steps
    assert math.isnan(cell.cost())


@pytest.mark.parametrize("arm", arms.ARMS)
def test_every_arm_can_be_run(arm):
    for family, jobs in {(task.family, task.jobs) for task in data.TASKS.values()}:
        entry = arms.ARMS[arm].get(family)
        if entry is None:
            continue
        expected = ("retrieval",) if entry.is_open_clip else jobs
        plan = runs.planned(family, entry, expected, SCENES)
        assert [stage.job for stage in plan if stage.job] == [*expected], family


def test_results_of_other_settings_are_refused(tmp_path):
    arm = arms.Arm((arms.Stage("scenes", 0.5),))
    cell = cell_of(tmp_path, arm)
    cell.folder.mkdir(parents=True)
    cell.keep(
        "vqa",
        [50.0, 49.0],
        [3200, 3200],
        {"vqa_acc": 0.5},
        {},
    )
    assert cell.result("vqa")["numbers"] == {"vqa_acc": 0.5}
    other_cell = cell_of(tmp_path, arms.Arm((arms.Stage("scenes", 0.5, "--train.lr 1"),)))
    with pytest.raises(UserError, match="trained with other settings"):
        other_cell.result("vqa")


def test_a_tiny_arm_from_its_stages_to_its_page(table, quick_spawn):
    folder = table.parent
    rows = str(table)
    tiny_data = data.Data(
        train=rows,
        val=rows,
        read={"val": {"": rows, "_seen": rows}},
    )
    plan = planned_search(tiny_data, "--train.batch-size 16")
    configs = {stage.key: stage.config for stage in plan}
    write_json(folder / "probe.json", runs.probe(configs, rounds=1))
    cells = []
    for budget in (0.2, 0.4):
        cells.append(runs.Cell("tiny", "emoji", budget, 0, "val", folder, tiny_data, plan))
        assert cells[-1].cost() == budget
        cells[-1].do()
        assert cells[-1].cost() == 0
    before = cells[0].file("retrieval").stat().st_mtime_ns
    cells[0].do()  # all done
    assert cells[0].file("retrieval").stat().st_mtime_ns == before
    check_that_other_runs_are_refused(cells[0])

    collected = tables.collect(cells)
    outcomes = [outcome for by_arm in collected["emoji"].values() for outcome in by_arm["tiny"]]
    for outcome in outcomes:
        assert outcome.numbers["tr1"].n == len(NAMES)
        assert statistics.fmean(outcome.rows["tr1_seen"].values()) == outcome.numbers["tr1"]
        assert min(outcome.core_seconds["retrieval"]) > 0
    chance = 9 / 5 / 8  # nine pairs of eight images and five names
    assert outcomes[0].image_ablated["tr1"] == (pytest.approx(chance), "chance")
    page = tables.page(tables.sections(collected), "Title", "A note")
    assert "tr1, n 8" in page
    cells_of_row = f"<td>–</td><td>–</td><td>–</td><td>{chance:.3f} (chance)</td>"
    assert f'<th scope="row">without the image</th>{cells_of_row}' in page
    assert ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6]).tag == "svg"
    assert "nothing about medicine" not in page
    phantoms = tables.sections({"phantoms": collected["emoji"]})
    assert "nothing about medicine" in tables.page(phantoms, "Title", "A note")
    json.dumps(tables.to_json(collected))


def check_that_other_runs_are_refused(cell):
    """A run of another recipe, or of other steps, is not evaluated."""
    probe = cell.out / "probe.json"
    seconds = runs.known_seconds(cell.out)
    plan = planned_search(cell.data, "--train.batch-size 16 --train.lr 1e-4")
    times = [seconds[stage.key] for stage in cell.plan]
    write_json(probe, {stage.key: [time] for stage, time in zip(plan, times, strict=True)})
    with pytest.raises(UserError, match=r"other values: train\.lr"):
        dataclasses.replace(cell, on="test", plan=plan).do()
    write_json(probe, {key: [value / 3] for key, value in seconds.items()})
    with pytest.raises(UserError, match=r"holds a run of .* steps, not"):
        dataclasses.replace(cell, on="test").do()
    write_json(probe, {key: [value] for key, value in seconds.items()})


def planned_search(rows, flags=""):
    """Return the plan of a tiny arm for search."""
    search = arms.Stage("search_small", flags=flags)
    arm = arms.Arm((arms.Stage("tiny", 0.5),), {"retrieval": search})
    return runs.planned("emoji", arm, ("retrieval",), rows)


# Tables


def outcomes(*values, first_seed=0, rows=None):
    return [
        tables.Outcome(
            seed=seed,
            numbers={
                "tr1": MeasuredValue(
                    value,
                    n=4,
                    low=0,
                    high=1,
                    method="wilson",
                )
            },
            core_seconds={"retrieval": [40.0 + seed, 60.0]},
            pairs={"retrieval": [32_000, 128]},
            rows={"tr1": rows or {}},
        )
        for seed, value in enumerate(values, first_seed)
    ]


def test_a_table_has_mean_and_ends_over_seeds():
    lines = tables.table(
        {
            "a": outcomes(0.2, 0.3, 0.4),
            "b": outcomes(0.5),
        }
    )
    assert lines == [
        ["arm", "seeds", "core-seconds", "training rows", "tr1, n 4"],
        ["a", "3", "101 (100–102)", "32k + 128", "0.300 (0.200–0.400)"],
        ["b", "1", "100", "32k + 128", "0.500"],
    ]
    assert tables.markdown(lines).splitlines()[1:3] == [
        "|---|---|---|---|---|",
        "| a | 3 | 101 (100–102) | 32k + 128 | 0.300 (0.200–0.400) |",
    ]


def test_the_best_image_ablated_baseline_is_the_last_line():
    numbers = {
        "vqa_acc_majority": 0.2,
        "vqa_acc_blind": 0.4,
        "vqa_acc_words": 0.3,
        "tr1_chance": 0.1,
        "tr1_chance_seen": 0.5,
    }
    assert tables.best_image_ablated("vqa_acc", numbers) == (0.4, "by the same question")
    assert tables.best_image_ablated("tr1", numbers) == (0.1, "chance")
    assert tables.best_image_ablated("tr1_seen", numbers) == (0.5, "chance")
    assert tables.best_image_ablated("nlvr2_acc", numbers) == (0.5, "chance")
    assert tables.best_image_ablated("ir1", numbers) is None
    (arm,) = outcomes(0.2)
    lines = tables.table(
        {"a": [replace(arm, image_ablated={"tr1": (0.25, "chance")})]}, {"a": {"tr1": 30.0}}
    )
    assert lines[2] == ["without the image", "–", "–", "–", "0.250 (chance)", "–"]


def test_a_difference_is_marked_if_every_seed_of_one_arm_is_better():
    collected = {
        "a": outcomes(0.5, 0.6),
        "b": outcomes(0.4, 0.45),
        "c": outcomes(0.55, 0.3),
        "d": outcomes(0.1),
    }
    comparisons = tables.comparisons(collected)
    assert len(comparisons) == 6
    by_pair = {(comparison.arm, comparison.other): comparison for comparison in comparisons}
    assert by_pair["a", "b"].is_beyond
    assert by_pair["a", "b"].difference == pytest.approx(0.125)
    assert not by_pair["a", "c"].is_beyond
    assert not by_pair["a", "d"].is_beyond  # one seed
    lines = tables.differences(comparisons)
    assert lines[:3] == [
        ["difference", "tr1"],
        ["a − b", "+0.125 !"],
        ["a − c", "+0.125"],
    ]
    other_seeds = {
        "a": outcomes(0.5),
        "b": outcomes(0.1, first_seed=7),
    }
    assert tables.versus(other_seeds, "a", "b", "tr1") is None


# open_clip


def data_of(table):
    return data.Data(
        train=str(table),
        val=str(table),
        read={},
    )


def config_for(table):
    return planned_search(data_of(table))[-1].config


def recall(score_QC, is_true_QC, k):
    """Compute recall at k with a loop; the earlier candidate wins a tie."""
    hits = []
    for scores, is_true in zip(score_QC.tolist(), is_true_QC, strict=True):
        order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate))
        hits.append(any(is_true[candidate] for candidate in order[:k]))
    return sum(hits) / len(hits)


def test_open_clip_is_evaluated_on_the_rows_of_our_runs(table):
    """Differences are computed row by row."""
    config = config_for(table)
    search = open_clip.searched(str(table), config)
    task = Retrieval(config, Sizes(vocab_size=search.tokenizer.vocab_size)).eval()
    gallery = gather_gallery(task, eval_loader(search, rank=0, world=1))
    features = (
        gallery.image_Id.detach().numpy(),
        gallery.caption_Td.detach().numpy(),
    )
    numbers, rows = open_clip.numbers_of(search, *features)
    ours = evaluator_of(task).evaluate_with_rows(eval_loader(search, rank=0, world=1))
    assert rows == ours.row_scores
    assert {name: ours.numbers[name] for name in numbers} == numbers


def test_open_clip_gets_the_images_of_our_runs(table, tmp_path):
    config = config_for(table)
    open_clip.write_training(tmp_path / "train", config)
    open_clip.write_reading(tmp_path / "read", str(table), config)
    pixels = np.load(tmp_path / "train" / "images.npy")
    assert config.data.crop_scale[0] == 0.7
    assert (pixels.shape, pixels.dtype) == ((8, 3, 39, 39), np.uint8)  # 39 · √0.7 > 32
    read = np.load(tmp_path / "read" / "images.npy")
    assert (read.shape, read.dtype) == ((8, 3, 32, 32), np.uint8)
    assert read.mean() == pytest.approx(pixels.mean(), abs=2)
    assert torch.equal(script.loaded(tmp_path / "read", 32), torch.from_numpy(read))
    smaller = script.loaded(tmp_path / "read", 24)
    assert (smaller.shape, smaller.dtype) == ((8, 3, 24, 24), torch.uint8)
    assert smaller.float().mean() == pytest.approx(read.mean(), abs=2)
    trained_texts = json.loads((tmp_path / "train" / "texts.json").read_text())
    assert trained_texts["captions"] == NAMES
    read_texts = json.loads((tmp_path / "read" / "texts.json").read_text())
    assert read_texts == {"texts": ["a cat", "a dog", "sun", "tree", "house"]}


def test_open_clip_crops_are_boxes_of_the_image():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    whole_size = (1.0, 1.0)
    never = np.zeros(4, bool)
    whole = script.cropped(pixels, whole_size, np.random.default_rng(0), never, 16)
    assert torch.equal(whole, pixels / 127.5 - 1)
    small = script.cropped(pixels, whole_size, np.random.default_rng(0), never, 8)
    assert torch.equal(small, script.resized(whole, 8))
    for image in script.cropped(pixels, whole_size, np.random.default_rng(0), ~never, 16):
        assert torch.equal(image, whole[0]) or torch.equal(image, whole[0].flip(2))

    # a gradient that rises by one from pixel to pixel shows the sides of a crop
    crops = 127.5 * script.cropped(pixels, (0.5, 0.5), np.random.default_rng(0), never, 16)[:, 0]
    width = crops[:, 8, 9] - crops[:, 8, 8]
    height = (crops[:, 9, 8] - crops[:, 8, 8]) / 16
    assert torch.allclose(width * height, torch.full((4,), 0.5), atol=1e-3)
    assert (width / height).max() <= 4 / 3 + 1e-3


@dataclasses.dataclass
class Draws:
    """A generator that returns known numbers in turn."""

    numbers: np.ndarray

    def random(self, num: int) -> np.ndarray:
        drawn, self.numbers = np.split(self.numbers, [num])
        return drawn


@pytest.mark.parametrize("name", ["random_ink", "strokes", "ink_strokes"])
def test_open_clip_augments_as_we_do(name: str):
    """Drawings have white areas, so that some lines become thinner and others would lose too much
    ink."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (200, 3, 9, 10), dtype=torch.uint8, generator=random)
    pixels[torch.rand(200, generator=random) < 0.5, :, :, 4:] = 255
    pixels[torch.rand(200, generator=random) < 0.5, :, 1:6, 1:6] = 0
    before = pixels.clone()
    draws = np.concatenate(np.random.default_rng(0).random((2, 200, 5)), axis=1)
    augmented = script.AUGMENTATIONS[name](pixels, np.random.default_rng(0))
    for image, numbers, new in zip(pixels, draws, augmented, strict=True):
        assert torch.equal(new, augment(image, name, Draws(numbers)))  # pyright: ignore[reportArgumentType]
    assert torch.equal(pixels, before)
    same = (augmented == pixels).flatten(1).all(1).float().mean()
    least, most = (0.3, 0.7) if name == "random_ink" else (0, 0.3)
    assert least <= same < most
    assert torch.equal(script.AUGMENTATIONS["none"](pixels, np.random.default_rng(0)), pixels)


def test_open_clip_changes_colours_as_we_do():
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 3, 9, 10), dtype=torch.uint8, generator=random)
    changed = script.AUGMENTATIONS["color"](pixels, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    for image, new in zip(pixels, changed, strict=True):
        expected = augment(image, "color", rng)
        assert (new.int() - expected.int()).abs().max() <= 1
    assert (changed.float() - pixels.float()).abs().mean() > 5


def test_open_clip_refuses_to_resume_with_other_settings_or_rows(table):
    rows = data_of(table)
    plan = planned_search(rows)
    settings = open_clip.SETTINGS
    cell = open_clip.OpenClipCell(
        *("open_clip", "emoji", 10, 0, "val", table.parent, rows, plan), settings=settings
    )
    cell.folder.mkdir(parents=True)
    cell.refuse_other()
    (cell.folder / "state.pt").touch()
    cell.refuse_other()
    with pytest.raises(UserError, match="started with other settings"):
        dataclasses.replace(cell, settings={**settings, "rate": 5e-4}).refuse_other()
    before = cell.given("train", rows.train)
    table.write_text(table.read_text().replace("sun", "moon"))
    assert cell.given("train", rows.train) != before
    with pytest.raises(UserError, match="started with other settings"):
        cell.refuse_other()
    (cell.folder / "result.json").write_text('{"open_clip": "3.3.0"}')
    assert open_clip.versions([cell]) == ["3.3.0"]


# Data and flags


def test_an_unseen_style_and_its_concepts_are_not_in_training(tmp_path):
    for split in ("train", "val", "test_concepts"):
        rows = []
        for vendor in ("noto", "twemoji", "fluent-emoji-flat"):
            rows.append({"image": f"{split}_{vendor}.png", "vendor": vendor})
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    style = data.emoji_style(tmp_path, tmp_path / "made")
    images = {
        style.train: ["train_noto.png", "train_fluent-emoji-flat.png"],
        style.read["test"][""]: ["test_concepts_twemoji.png"],
        style.read["test"]["_seen"]: ["train_twemoji.png"],
    }
    for path, expected in images.items():
        lines = Path(path).read_text().splitlines()
        assert [json.loads(line)["image"] for line in lines] == expected
    assert style.root == tmp_path


def arguments(tmp_path, tune):
    """Return the arguments of a command on two budgets and two seeds."""
    cells = f"--tasks scenes --arms EVE open_clip --budgets 10 20 --seeds 0 1 --out {tmp_path}"
    return command.arguments([*cells.split(), *tune.split(), "--tune-patch", "8"])


def keep_result(cell, r_mean):
    cell.folder.mkdir(parents=True)
    cell.keep("retrieval", [10.0], [640], {"r_mean": r_mean}, {})


def test_cells_follow_the_flags_and_tuning_tries_each_setting_of_open_clip(tmp_path):
    tune = "--tune-blocks 4 --tune-batch 64"
    args = arguments(tmp_path, f"{tune} --tune-rate 1e-3 2e-3 --tune-warmup 0.1")
    cells = command.cells_of(args)
    keys = [(seed, budget, arm) for seed in (0, 1) for budget in (10, 20) for arm in args.arms]
    assert [(cell.seed, cell.budget, cell.arm) for cell in cells] == keys
    tried = command.tuned_cells(args, cells)
    assert [cell.settings["rate"] for cell in tried] == [1e-3, 2e-3]
    assert len({cell.folder for cell in [*tried, *cells]}) == 10
    keep_result(tried[0], 0.1)
    keep_result(tried[1], 0.2)
    open_clip.choose(tmp_path, "scenes", tried)
    settings, how = open_clip.settings_of(tmp_path, "scenes")
    assert (settings["rate"], how) == (2e-3, "best of 2 by validation within 10 core-seconds")
    assert math.isclose(command.cells_of(args)[1].settings["rate"], 2e-3)

    args = arguments(tmp_path, f"{tune} --tune-rate 5e-4 --tune-warmup 0.2")
    (later,) = command.tuned_cells(args, cells)
    keep_result(later, 0.15)
    for _ in range(2):  # the best of the earlier call stays
        open_clip.choose(tmp_path, "scenes", [later])
    expected = (settings, how.replace("best of 2", "best of 3"))
    assert open_clip.settings_of(tmp_path, "scenes") == expected
