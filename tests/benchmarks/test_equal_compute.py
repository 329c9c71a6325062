"""benchmarks/equal_compute: steps from budgets, differences over seeds, open_clip evaluated like
our own runs."""

import dataclasses
import importlib
import json
import math
import re
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
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts import each other by name
command, arms, data, runs, open_clip, tables, script = map(
    importlib.import_module,
    [
        f"equal_compute.{name}"
        for name in ("run", "arms", "data", "cells", "open_clip_cells", "tables", "open_clip_train")
    ],
)

SCENES = data.scenes(Path(), Path())


@pytest.fixture
def images(tmp_path):
    """Eight images of five names, one of them with two."""
    names = [
        ["a cat"],
        ["a cat"],
        ["a dog"],
        ["sun"],
        ["sun", "a dog"],
        ["tree"],
        ["house"],
        ["a cat"],
    ]
    rng = np.random.default_rng(0)
    for number in range(len(names)):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    rows = [
        {"image": f"{number}.png", "captions": captions} for number, captions in enumerate(names)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, names


# Arms and runs


def cell_of(tmp_path, arm, jobs=("vqa",), budget=100.0, seconds=0.5, rows=SCENES):
    plan = runs.planned("scenes", arm, jobs, rows)
    (tmp_path / "probe.json").write_text(
        json.dumps({stage.key: [9 * seconds, seconds, seconds / 9] for stage in plan})
    )
    return runs.Cell("an arm", "scenes", budget, 3, "val", tmp_path, rows, plan)


def test_stages_share_the_budget_and_fine_tuning_gets_the_rest(tmp_path):
    arm = arms.Arm((arms.Stage("scenes", 0.25, "--train.batch-size 16"),))
    cell = cell_of(tmp_path, arm, ("vqa", "nlvr2"))
    assert [stage.share for stage in cell.plan] == [0.25, 0.75, 0.75]
    steps = {
        stage["run"]: (stage["steps"], stage["batch"])
        for job in cell.jobs
        for stage in cell.stages(job)
    }
    assert steps == {"0_scenes": (50, 16), "vqa": (150, 64), "nlvr2": (150, 32)}
    assert cell.cost() == 25 + 75 + 75
    configs = cell.configs()
    assert {
        (config.train.seed, config.train.threads, config.data.num_workers)
        for config in configs.values()
    } == {(3, 1, 0)}
    assert [config.train.steps for config in configs.values()] == [50, 150, 150]
    assert configs["0_scenes"].init is None
    assert configs["vqa"].init == configs["nlvr2"].init == configs["0_scenes"].out
    assert not configs["vqa"].scratch


def test_without_pretraining_the_whole_budget_trains_from_random_weights(tmp_path):
    cell = cell_of(tmp_path, arms.ARMS["nothing"]["scenes"], ("retrieval",))
    config = cell.configs()["retrieval"]
    assert config.scratch
    assert config.init == cell.folder / "0_scenes_words"
    assert config.train.steps == 200
    assert cell.cost() == 100


def test_a_budget_of_pairs_counts_rows_independent_of_step_time(tmp_path):
    arm = arms.Arm((arms.Stage("scenes", 0.25, "--train.batch-size 16"),))
    timed = cell_of(tmp_path, arm, ("vqa", "nlvr2"))
    cell = runs.Cell("an arm", "scenes", 6400, 3, "val", tmp_path, SCENES, timed.plan, unit="pairs")
    steps = {stage["run"]: stage["steps"] for job in cell.jobs for stage in cell.stages(job)}
    assert steps == {"0_scenes": 1600 / 16, "vqa": 4800 / 64, "nlvr2": 4800 / 32}
    assert cell.cost() == 0.5 * sum(steps.values())  # each step takes half a second
    assert [config.train.steps for config in cell.configs().values()] == [100, 75, 150]
    assert cell.folder.parts[-2:] == ("6400_pairs", "seed_3")
    (tmp_path / "probe.json").unlink()
    assert {
        stage["run"]: stage["steps"] for job in cell.jobs for stage in cell.stages(job)
    } == steps
    assert math.isnan(cell.cost())


def test_flags_and_another_task_change_a_recipe():
    arm = arms.Arm(
        (arms.Stage("emoji", 0.5, "--task.mim-weight 0 --train.lr 2e-3", ContrastMatchConfig),)
    )
    (first, last) = runs.planned("emoji", arm, ("retrieval",), SCENES)
    assert isinstance(first.config.task, ContrastMatchConfig)
    assert (
        first.config.task.mim_weight,
        first.config.task.mask_replace_prob,
        first.config.train.lr,
    ) == (0, 0.5, 2e-3)
    assert last.config.model == first.config.model
    with pytest.raises(UserError, match=r"Unrecognized options: --train.rate"):
        runs.planned("emoji", arms.Arm((arms.Stage("emoji", 0.5, "--train.rate 1"),)), (), SCENES)
    with pytest.raises(UserError, match="leave some for fine-tuning"):
        runs.planned("emoji", arms.Arm((arms.Stage("emoji", 1.0),)), ("retrieval",), SCENES)


@pytest.mark.parametrize("arm", arms.ARMS)
def test_every_arm_can_be_run(arm):
    for family, every_job in {(task.family, task.jobs) for task in data.TASKS.values()}:
        if (entry := arms.ARMS[arm].get(family)) is not None:
            jobs = ("retrieval",) if entry.is_open_clip else every_job
            assert [
                stage.job for stage in runs.planned(family, entry, jobs, SCENES) if stage.job
            ] == [*jobs], family


def test_results_of_other_settings_are_refused(tmp_path):
    arm = arms.Arm((arms.Stage("scenes", 0.5),))
    cell = cell_of(tmp_path, arm)
    cell.folder.mkdir(parents=True)
    cell.keep("vqa", [50.0, 49.0], [3200, 3200], {"vqa_acc": 0.5}, {})
    assert cell.result("vqa")["numbers"] == {"vqa_acc": 0.5}
    other_cell = cell_of(tmp_path, arms.Arm((arms.Stage("scenes", 0.5, "--train.lr 1"),)))
    with pytest.raises(UserError, match="trained with other settings"):
        other_cell.result("vqa")


def test_a_tiny_arm_from_its_stages_to_its_page(images, quick_spawn):
    folder, names = images
    rows = str(folder / "rows.jsonl")
    tiny_data = data.Data(train=rows, val=rows, read={"val": {"": rows, "_seen": rows}})
    few = "--train.batch-size 16"
    arm = arms.Arm(
        (arms.Stage("tiny", 0.5),),
        {"retrieval": arms.Stage("search_small", flags=few)},
    )
    plan = runs.planned("emoji", arm, ("retrieval",), tiny_data)
    (folder / "probe.json").write_text(
        json.dumps(runs.probe({stage.key: stage.config for stage in plan}, rounds=1))
    )
    cells = [
        runs.Cell("tiny", "emoji", budget, 0, "val", folder, tiny_data, plan)
        for budget in (0.2, 0.4)
    ]
    for cell in cells:
        assert cell.cost() == cell.budget
        cell.do()
        assert cell.cost() == 0
    before = cells[0].file("retrieval").stat().st_mtime_ns
    cells[0].do()  # all done
    assert cells[0].file("retrieval").stat().st_mtime_ns == before
    flags = f"{few} --train.lr 1e-4"
    other_cell = runs.planned(
        "emoji",
        arms.Arm(arm.before, {"retrieval": arms.Stage("search_small", 0, flags)}),
        ("retrieval",),
        tiny_data,
    )
    seconds = runs.known_seconds(folder)
    (folder / "probe.json").write_text(
        json.dumps(
            {stage.key: [seconds[old.key]] for stage, old in zip(other_cell, plan, strict=True)}
        )
    )
    with pytest.raises(
        UserError, match=r"other values: train\.lr"
    ):  # a run of another recipe is not evaluated
        dataclasses.replace(cells[0], on="test", plan=other_cell).do()
    steps = {key: [value / 3] for key, value in seconds.items()}
    (folder / "probe.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match=r"holds a run of .* steps, not"):
        dataclasses.replace(cells[0], on="test").do()
    (folder / "probe.json").write_text(json.dumps({key: [value] for key, value in seconds.items()}))
    collected = tables.collect(cells)
    outcomes = [outcome for of_arm in collected["emoji"].values() for outcome in of_arm["tiny"]]
    for outcome in outcomes:
        assert outcome.numbers["tr1"].n == len(names)
        assert statistics.fmean(outcome.rows["tr1_seen"].values()) == outcome.numbers["tr1"]
        assert all(seconds > 0 for seconds in outcome.core_seconds["retrieval"])
    page = tables.page(tables.sections(collected), "Title", "A note")
    assert "tr1, n 8" in page and "nothing about medicine" not in page
    chance = 9 / 5 / 8  # nine pairs of eight images and five names
    assert outcomes[0].image_ablated["tr1"] == (pytest.approx(chance), "chance")
    assert (
        '<th scope="row">without the image</th><td>–</td><td>–</td><td>–</td>'
        f"<td>{chance:.3f} (chance)</td>" in page
    )
    assert "nothing about medicine" in tables.page(
        tables.sections({"phantoms": collected["emoji"]}), "Title", "A note"
    )
    assert ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6]).tag == "svg"
    json.dumps(tables.to_json(collected))


# Tables


def outcomes(*values, seeds=None, rows=None):
    return [
        tables.Outcome(
            seed=seed,
            numbers={"tr1": MeasuredValue(value, n=4, low=0, high=1, method="wilson")},
            core_seconds={"retrieval": [40.0 + seed, 60.0]},
            pairs={"retrieval": [32_000, 128]},
            rows={"tr1": rows or {}},
        )
        for seed, value in zip(seeds or range(len(values)), values, strict=True)
    ]


def test_a_table_has_mean_and_ends_over_seeds():
    lines = tables.table({"a": outcomes(0.2, 0.3, 0.4), "b": outcomes(0.5)})
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
    by_pair = {
        (comparison.arm, comparison.other): comparison
        for comparison in tables.comparisons(collected)
    }
    assert len(by_pair) == 6
    assert by_pair["a", "b"].is_beyond
    assert by_pair["a", "b"].difference == pytest.approx(0.125)
    assert not by_pair["a", "c"].is_beyond
    assert not by_pair["a", "d"].is_beyond  # one seed
    lines = tables.differences(list(by_pair.values()))
    assert lines[:3] == [["difference", "tr1"], ["a − b", "+0.125 !"], ["a − c", "+0.125"]]
    assert (
        tables.versus({"a": outcomes(0.5), "b": outcomes(0.1, seeds=[7])}, "a", "b", "tr1") is None
    )


def test_differences_have_intervals_over_rows():
    right, wrong = ({f"tr1 {row}": float(value) for row in range(100)} for value in (1, 0))
    collected = {"a": outcomes(1.0, rows=right), "b": outcomes(0.0, rows=wrong)}
    low, high = tables.versus(collected, "a", "b", "tr1").interval
    assert 0.9 < low <= 1 <= high
    rows = {"tr1 x": 1.0, "ir1 x": 0.0, "_seentr1 x": 0.5}
    assert tables.rows_of("tr1", rows) == {"tr1 x": 1.0}
    assert tables.rows_of("tr1_seen", rows) == {"_seentr1 x": 0.5}
    assert tables.rows_of("tr5", rows) == {}
    assert tables.rows_of("vqa_acc", {"x": 1.0, "_novelx": 0.5}) == {"x": 1.0}
    assert tables.rows_of("vqa_acc_novel", {"x": 1.0, "_novelx": 0.5}) == {"_novelx": 0.5}


# open_clip


def config_for(folder):
    rows = data.Data(train=str(folder / "rows.jsonl"), val=str(folder / "rows.jsonl"), read={})
    arm = arms.Arm((arms.Stage("tiny"),), {"retrieval": arms.Stage("search_small")})
    return runs.planned("emoji", arm, ("retrieval",), rows)[-1].config


def recall(score_QC, is_true_QC, k):
    """Compute recall at k with a loop; the earlier candidate wins a tie."""
    hits = []
    for scores, is_true in zip(score_QC.tolist(), is_true_QC, strict=True):
        order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate))
        hits.append(any(is_true[candidate] for candidate in order[:k]))
    return sum(hits) / len(hits)


def test_features_are_evaluated_like_a_slow_loop(images):
    folder, names = images
    search = open_clip.searched(str(folder / "rows.jsonl"), config_for(folder))
    images, texts = (
        torch.randn(num, 3, generator=torch.manual_seed(1))
        for num in (len(names), len(search.texts))
    )
    numbers, _ = open_clip.numbers_of(search, images.numpy(), texts.numpy())
    is_true = [[text in captions for text in search.texts] for captions in names]
    for k in (1, 5, 10):
        assert numbers[f"tr{k}"] == recall(images @ texts.T, is_true, k)
        assert numbers[f"ir{k}"] == recall(texts @ images.T, list(zip(*is_true, strict=True)), k)


def test_open_clip_is_evaluated_on_the_rows_of_our_runs(images):
    """Differences are computed row by row."""
    folder, _ = images
    config = config_for(folder)
    search = open_clip.searched(str(folder / "rows.jsonl"), config)
    task = Retrieval(config, Sizes(vocab_size=search.tokenizer.vocab_size)).eval()
    gallery = gather_gallery(task, eval_loader(search, rank=0, world=1))
    numbers, rows = open_clip.numbers_of(
        search, gallery.image_Id.detach().numpy(), gallery.caption_Td.detach().numpy()
    )
    ours = evaluator_of(task).evaluate_with_rows(eval_loader(search, rank=0, world=1))
    assert rows == ours.row_scores
    assert {name: ours.numbers[name] for name in numbers} == numbers


def test_open_clip_gets_the_images_of_our_runs(images, tmp_path):
    folder, names = images
    config = config_for(folder)
    open_clip.write_training(tmp_path / "train", config)
    open_clip.write_reading(tmp_path / "read", str(folder / "rows.jsonl"), config)
    pixels = np.load(tmp_path / "train" / "images.npy")
    assert (pixels.shape, pixels.dtype) == ((8, 3, 32, 32), np.uint8)
    assert (pixels == np.load(tmp_path / "read" / "images.npy")).all()
    assert torch.equal(script.loaded(tmp_path / "read", 16), torch.from_numpy(pixels))
    smaller = script.loaded(tmp_path / "read", 12)
    assert (smaller.shape, smaller.dtype) == ((8, 3, 24, 24), torch.uint8)
    assert smaller.float().mean() == pytest.approx(pixels.mean(), abs=2)
    assert json.loads((tmp_path / "train" / "texts.json").read_text())["captions"] == names
    assert json.loads((tmp_path / "read" / "texts.json").read_text()) == {
        "texts": ["a cat", "a dog", "sun", "tree", "house"]
    }


def test_open_clip_learning_rates_follow_the_budget():
    assert script.rate_at(0, 1e-3, 0.1) == 0
    assert script.rate_at(0.05, 1e-3, 0.1) == pytest.approx(5e-4)
    assert script.rate_at(0.1, 1e-3, 0.1) == 1e-3
    assert script.rate_at(0.55, 1e-3, 0.1) == pytest.approx(5e-4)
    assert script.rate_at(1.2, 1e-3, 0.1) == pytest.approx(0)


def test_open_clip_sees_each_row_once_per_epoch():
    first, second = (
        [row for step in steps for row in script.rows_of(step, 10, 3, 0)]
        for steps in (range(3), range(3, 6))
    )
    assert len({*first}) == len({*second}) == 9
    assert first != second


def test_open_clip_crops_are_boxes_of_the_image():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    whole = script.cropped(pixels, (1.0, 1.0), np.random.default_rng(0), np.zeros(4, bool))
    assert torch.equal(whole, pixels / 127.5 - 1)
    may = np.ones(4, bool)
    mirrored = script.cropped(pixels, (1.0, 1.0), np.random.default_rng(0), may)
    assert {bool(torch.equal(image, whole[0])) for image in mirrored} <= {True, False}
    assert all(
        torch.equal(image, whole[0]) or torch.equal(image, whole[0].flip(2)) for image in mirrored
    )
    crops = script.cropped(pixels, (0.5, 0.5), np.random.default_rng(0), ~may)
    step = (
        crops[:, 0, 8, 9] - crops[:, 0, 8, 8]
    ) * 127.5  # of a gradient that rises by one from pixel to pixel
    slope = (crops[:, 0, 9, 8] - crops[:, 0, 8, 8]) * 127.5 / 16
    assert torch.allclose(step * slope, torch.full((4,), 0.5), atol=1e-3)
    assert (step / slope).max() <= 4 / 3 + 1e-3


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


def test_open_clip_refuses_to_resume_with_other_settings_or_rows(images):
    folder, _ = images
    rows = data.Data(train=str(folder / "rows.jsonl"), val=str(folder / "rows.jsonl"), read={})
    plan = runs.planned(
        "emoji",
        arms.Arm((arms.Stage("tiny"),), {"retrieval": arms.Stage("search_small")}),
        ("retrieval",),
        rows,
    )
    cell = open_clip.OpenClipCell(
        "open_clip", "emoji", 10, 0, "val", folder, rows, plan, settings=open_clip.SETTINGS
    )
    cell.folder.mkdir(parents=True)
    cell.refuse_other()
    (cell.folder / "state.pt").touch()
    cell.refuse_other()
    with pytest.raises(UserError, match="started with other settings"):
        dataclasses.replace(cell, settings={**open_clip.SETTINGS, "rate": 5e-4}).refuse_other()
    before = cell.given("train", rows.train)
    Path(rows.train).write_text(Path(rows.train).read_text().replace("sun", "moon"))
    assert cell.given("train", rows.train) != before
    with pytest.raises(UserError, match="started with other settings"):
        cell.refuse_other()
    (cell.folder / "result.json").write_text('{"open_clip": "3.3.0"}')
    assert open_clip.versions([cell]) == ["3.3.0"]


# Data and flags


def test_an_unseen_style_and_its_concepts_are_not_in_training(tmp_path):
    for split in ("train", "val", "test_concepts"):
        rows = [
            {"image": f"{split}_{vendor}.png", "vendor": vendor}
            for vendor in ("noto", "twemoji", "fluent-emoji-flat")
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    style = data.emoji_style(tmp_path, tmp_path / "made")

    def shown(path):
        return [json.loads(line)["image"] for line in Path(path).read_text().splitlines()]

    assert shown(style.train) == ["train_noto.png", "train_fluent-emoji-flat.png"]
    assert shown(style.read["test"][""]) == ["test_concepts_twemoji.png"]
    assert shown(style.read["test"]["_seen"]) == ["train_twemoji.png"]
    assert style.root == tmp_path


def test_cells_follow_the_flags_and_tuning_tries_each_setting_of_open_clip(tmp_path, capsys):
    flags = (
        f"--tasks scenes --arms EVE open_clip --budgets 10 20 --seeds 0 1 --out {tmp_path}".split()
    )
    patch = ["--tune-patch", "8", "--tune-blocks", "4"]
    args = command.arguments(
        [
            *flags,
            "--tune-rate",
            "1e-3",
            "2e-3",
            "--tune-batch",
            "64",
            "--tune-warmup",
            "0.1",
            *patch,
        ]
    )
    cells = command.cells_of(args)
    assert [(cell.seed, cell.budget, cell.arm) for cell in cells[:5]] == [
        *(
            (0, 10, "EVE"),
            (0, 10, "open_clip"),
            (0, 20, "EVE"),
            (0, 20, "open_clip"),
            (1, 10, "EVE"),
        ),
    ]
    tried = command.tuned_cells(args, cells)
    assert [cell.settings["rate"] for cell in tried] == [1e-3, 2e-3]
    assert len({cell.folder for cell in tried} | {cell.folder for cell in cells}) == 10
    for cell, r_mean in zip(tried, (0.1, 0.2), strict=True):
        cell.folder.mkdir(parents=True)
        cell.keep("retrieval", [10.0], [640], {"r_mean": r_mean}, {})
    open_clip.choose(tmp_path, "scenes", tried)
    settings, how = open_clip.settings_of(tmp_path, "scenes")
    assert (settings["rate"], how) == (2e-3, "best of 2 by validation within 10 core-seconds")
    assert math.isclose(command.cells_of(args)[1].settings["rate"], 2e-3)
    (later,) = command.tuned_cells(
        command.arguments(
            [*flags, *["--tune-rate", "5e-4", "--tune-batch", "64", "--tune-warmup", "0.2"], *patch]
        ),
        cells,
    )
    later.folder.mkdir(parents=True)
    later.keep("retrieval", [10.0], [640], {"r_mean": 0.15}, {})
    open_clip.choose(tmp_path, "scenes", [later])  # the best of the earlier call stays
    open_clip.choose(tmp_path, "scenes", [later])
    assert open_clip.settings_of(tmp_path, "scenes") == (
        settings,
        how.replace("best of 2", "best of 3"),
    )
    with pytest.raises(SystemExit):
        command.arguments(["--tasks", "emoji", "--budgets", "10"])
    assert "--emoji FOLDER" in capsys.readouterr().err


def test_dots_lie_at_means_and_strokes_between_the_least_and_the_largest():
    chart = tables.dot_chart(
        "x", [("a", [0.2, 0.4]), ("b", [0.6])], show=tables.percent, level=("guess", 0.1)
    )
    ticks = [float(place) for place in re.findall(r'class="grid" x1="([\d.]+)"', chart)]
    shares = [float(share) / 100 for share in re.findall(r">([\d.]+) %</text>", chart)]
    (first, a), (last, b) = zip(shares[:: len(shares) - 1], ticks[:: len(ticks) - 1], strict=True)
    value = lambda place: first + (last - first) * (float(place) - a) / (b - a)  # noqa: E731
    assert [
        value(x) for x in re.findall(r'<circle class="c0" cx="([\d.]+)"', chart)
    ] == pytest.approx([0.3, 0.6], abs=2e-3)
    strokes = re.findall(r'<line class="c0" x1="([\d.]+)" x2="([\d.]+)"', chart)
    assert [value(x) for ends in strokes for x in ends] == pytest.approx(
        [0.2, 0.4, 0.6, 0.6], abs=2e-3
    )
    assert [
        value(x) for x in re.findall(r'<line class="ref" x1="([\d.]+)"', chart)[:1]
    ] == pytest.approx([0.1], abs=2e-3)
