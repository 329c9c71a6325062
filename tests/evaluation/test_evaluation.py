"""Reported numbers: intervals, skipped rows, and rows that were used in training."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.config import DataConfig
from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics import classification, intervals
from eve_vl.metrics.intervals import MeasuredValue, from_json, paired, share, to_json
from eve_vl.metrics.names import meaning
from eve_vl.run.leaks import leaks
from eve_vl.run.loading import load_run
from eve_vl.systems.mlim.pretraining.evaluation import MlimEvaluator
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.evaluation import MaskedSignalEvaluator
from eve_vl.tasks.masked_signal.sums import Sums
from eve_vl.tasks.nlvr2.evaluation import NLVR2Evaluator
from eve_vl.tasks.retrieval.evaluation import RetrievalEvaluator
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.vqa import evaluation as vqa_evaluation
from eve_vl.tasks.vqa.evaluation import VQAEvaluator
from eve_vl.train.evaluation_batches import evaluation_batches, num_skipped
from eve_vl.train.run_log import RunLog, read_log
from eve_vl.utils.errors import UserError
from helpers.tiny_tasks import CPU, TOKENIZER, build, config_of, numbers_of
from helpers.twins import ListSource, pairs, questions, statements

COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_rows(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """Captioned images, some of which cannot be decoded."""
    folder.mkdir()
    rows = []
    for number in range(count):
        color = list(COLORS)[number % 3]
        Image.new("RGB", (40, 30 + number), COLORS[color]).save(folder / f"{number}.png")
        if number in broken:
            (folder / f"{number}.png").write_bytes(b"no image")
        rows.append({"image": f"{number}.png", "caption": f"{color} all over, number {number}"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on 120 own pairs, a tenth of them held out."""
    from eve_vl.cli.main import main

    out = tmp_path_factory.mktemp("trained")
    rows = write_rows(out / "pairs", 120)
    main(
        [
            *(
                "pretrain",
                "tiny",
                "--out",
                str(out / "run"),
                "--data.train",
                str(rows),
                "--data.val",
                "held-out",
            ),
            *(
                "--data.val-fraction",
                "0.1",
                "--train.steps",
                "2",
                "--train.dtype",
                "float32",
                "--data.num-workers",
                "0",
            ),
        ]
    )
    return out


def test_files_of_numbers_know_how_sure_they_are(trained: Path):
    (row,) = [row for row in read_log(trained / "run") if row["kind"] == "val"]
    assert isinstance(row["mlm_acc"], MeasuredValue)
    raw = [json.loads(line) for line in (trained / "run/log.jsonl").read_text().splitlines()]
    assert raw[-1]["certainty"] == to_json(row)["certainty"]
    assert (
        json.loads((trained / "run/metrics.json").read_text())["certainty"]
        == to_json(row)["certainty"]
    )


def test_a_share_to_hold_out_that_cannot_be_or_does_nothing():
    for share_of in (0.0, 0.6):
        (found,) = DataConfig(val_fraction=share_of).validate()
        assert "not in" in found
    held_out = DataConfig(train=("a.jsonl",), val=("held-out",), val_fraction=0.1)
    assert not held_out.validate() and "val_fraction" not in held_out.unused_fields()
    assert DataConfig(val_fraction=0.1).unused_fields()["val_fraction"] == "without val held-out"


def test_the_default_share_is_one_in_fifty_of_any_number():
    assert all(int(num * DataConfig.val_fraction) == num // 50 for num in range(300_000))


def test_evaluate_says_how_sure_each_number_is(trained: Path, eve):
    done = eve("evaluate", "masked_signal", trained / "run", "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    numbers = from_json(json.loads(Path("numbers.json").read_text()))
    assert f"fingerprint of the data      {numbers.pop('data')}\n" in done.stdout
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    for name, value in numbers.items():
        assert isinstance(value, MeasuredValue)
        first, rest = lines[name].split(maxsplit=1)
        assert first == f"{value:.4f}" and rest.startswith(
            f"{value.low:.4g}–{value.high:.4g}, n {value.n:,} "
        )
        assert rest.endswith("too few to tell") == (value.groups < 30)
    assert (
        "   masked tokens guessed right" in lines["mlm_acc"]
        and "guessed" not in lines["mlm_acc_wrong_image"]
    )
    shown = [line for line in done.stdout.splitlines() if line.startswith("m")]
    assert len(shown) == 8 and {re.search(r"\S+–", line).start() for line in shown} == {39}  # pyright: ignore
    assert (
        done.stdout.splitlines()[-1]
        == f"comparison: {evaluator_of(load_run(trained / 'run').task).comparison(numbers)}"
    )
    assert "note: " not in done.stdout  # held-out rows were not trained on


def test_rows_that_were_trained_on_are_noticed_whatever_the_file_is_called(
    trained: Path, eve, tmp_path
):
    run, rows = load_run(trained / "run"), trained / "pairs/rows.jsonl"
    renamed = trained / "pairs/other.jsonl"
    renamed.write_text("".join(rows.read_text().splitlines(keepends=True)[:60]))
    other = write_rows(tmp_path / "others", 10)

    def told(*paths: Path) -> list[str]:
        return leaks(run, open_sources([str(path) for path in paths], run.config.data, 48))

    train, _ = open_train_and_val(run.config)
    assert told(rows) == [
        f"of 120 rows compared, {len(train[0])} show what this run was trained on"
    ]
    assert 100 <= len(train[0]) <= 118  # all but about a tenth
    (note,) = told(renamed, other)
    assert (
        note.startswith("of 70 rows compared, ") and 40 <= int(note.split(", ")[1].split()[0]) < 60
    )
    assert told(other) == []
    done = eve("evaluate", "masked_signal", run.folder, "--data", renamed)
    assert "show what this run was trained on" in done.stdout


def test_validation_rows_that_the_initial_run_was_trained_on_are_reported(trained: Path):
    """Both held out by place: with one share nothing leaks; a larger share holds rows that --init's
    run was trained on."""
    run, rows = load_run(trained / "run"), str(trained / "pairs/rows.jsonl")

    def notes(**data: object) -> list[str]:
        config = replace(
            run.config, init=trained / "run", data=replace(run.config.data, train=(rows,), **data)
        )
        return leaks(replace(run, config=config))

    assert notes() == []
    (note,) = notes(val_fraction=0.4)
    assert note.endswith(
        f" show what {trained / 'run'}, which this run started from, was trained on"
    )


def test_evaluation_can_leave_broken_rows_out_and_says_so(trained: Path, eve, tmp_path):
    run = trained / "run"
    broken = write_rows(tmp_path / "broken", 20, broken=(3, 4, 11))
    done = eve("evaluate", "masked_signal", run, "--data", broken)
    assert done.returncode == 2
    assert "--skip-invalid" in done.stderr
    done = eve(
        "evaluate", "masked_signal", run, "--data", broken, "--skip-invalid", "--json", "left.json"
    )
    assert done.returncode == 0, done.stderr
    assert "note: rows left out, as they cannot be used: 3" in done.stdout.splitlines()
    left = json.loads(Path("left.json").read_text())
    assert left["num_skipped"] == 3
    whole = eve(
        "evaluate", "masked_signal", run, "--data", broken, "--skip-invalid", "--samples", 3
    )
    assert whole.returncode == 0
    nothing = write_rows(tmp_path / "nothing", 3, broken=(0, 1, 2))
    done = eve("evaluate", "masked_signal", run, "--data", nothing, "--skip-invalid")
    assert done.returncode == 2
    assert "no row to evaluate on can be used; the last: rows.jsonl:3: " in done.stderr


def test_evaluation_without_broken_rows_gives_the_numbers_of_the_good_rows():
    task = build(config_of("vqa"))
    rows = questions(12).rows
    bad = ListSource([None if row in (2, 7) else rows[row] for row in range(12)])
    good = ListSource([row for index, row in enumerate(rows) if index not in (2, 7)])
    sets = [
        QuestionRows([source], task.config, TOKENIZER, training=False) for source in (bad, good)
    ]
    found = []
    for dataset in sets:
        skipped: list = []
        with evaluation_batches(
            task, eval_loader(dataset, batch_size=3, rank=0, world=1), CPU, torch.float32, skipped
        ) as rows:
            found.append(evaluator_of(task).evaluate(rows) | num_skipped(skipped))
    assert found[0].pop("num_skipped") == 2
    assert found[0] == pytest.approx(found[1])
    with pytest.raises(UserError, match="cannot be used"):
        numbers_of(task, sets[0], 3)


def test_a_search_without_the_images_that_cannot_be_used():
    config = config_of("retrieval", data={"skip_invalid_val": True})
    task = build(config)
    assert isinstance(task, Retrieval)
    rows = [pairs(9)[row] for row in range(9)]
    rows[4] = replace(rows[4], image=ImageBytes(data=b"no image"))
    source = ListSource([None if index == 6 else row for index, row in enumerate(rows)])
    skipped: list = []
    loader = eval_loader(SearchSet([source], config, TOKENIZER), batch_size=2, rank=0, world=1)
    with evaluation_batches(task, loader, CPU, torch.float32, skipped) as batches:
        evaluated = evaluator_of(task).evaluate_with_rows(batches)
    assert sorted(error.where for error in skipped) == ["list:4", "list:6"]
    assert evaluated.numbers["num_images"] == 7
    assert sum(row.startswith("tr1 ") for row in evaluated.row_scores) == 7
    with pytest.raises(UserError, match="or leave them out: --skip-invalid in eve evaluate"):
        SearchSet(
            [source], replace(config, data=replace(config.data, skip_invalid_val=False)), TOKENIZER
        )


# Row by row


def test_the_shares_by_which_steps_compare_have_r_mean_as_their_mean():
    task = build(config_of("retrieval"))
    rows = [
        replace(pairs(9)[row], captions=("a red circle", f"number {row}")[: 1 + row % 2])
        for row in range(9)
    ]
    loader = eval_loader(
        SearchSet([ListSource(rows)], task.config, TOKENIZER), batch_size=4, rank=0, world=1
    )
    with evaluation_batches(task, loader, CPU, torch.float32) as batches:
        numbers, shares = evaluator_of(task).validate(batches)
    assert len(shares) == 9 + 13
    assert sum(shares.values()) / len(shares) == pytest.approx(numbers["r_mean"])


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "retrieval", "masked_signal"])
def test_the_scores_of_rows_come_to_the_number(name, trained: Path):
    if name == "masked_signal":
        run = load_run(trained / "run")
        found = evaluated(run, 20)
        numbers, scores = found.numbers, found.row_scores
        assert numbers == evaluated(run, 20).numbers
        assert len(scores) == 18 and all(row.startswith("rows.jsonl:") for row in scores)
        assert paired(scores, scores) == 0
        return
    task = build(config_of(name))
    source = {"vqa": questions, "nlvr2": statements, "retrieval": pairs}[name](23)
    dataset = evaluator_of(task).dataset([source], task.config, TOKENIZER)
    with evaluation_batches(
        task, eval_loader(dataset, batch_size=5, rank=0, world=1), CPU, torch.float32
    ) as batches:
        whole = evaluator_of(task).evaluate_with_rows(batches)
    parts = {
        "vqa": {"vqa_acc": ""},
        "nlvr2": {"nlvr2_acc": ""},
        "retrieval": {"tr1": "tr1 ", "ir1": "ir1 "},
    }[name]
    for number, start in parts.items():
        rows = [value for row, value in whole.row_scores.items() if row.startswith(start)]
        assert len(rows) == whole.numbers[number].n  # pyright: ignore[reportAttributeAccessIssue]
        assert sum(rows) / len(rows) == pytest.approx(whole.numbers[number])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tr1", "find the caption, R@1"),
        ("ir10_merged", "find the image, R@10, equal captions as one"),
        ("tr1_hard", "find the caption, R@1, among false captions that differ in one place"),
        ("tr1_chance", ""),
        ("precision_ir5", "find the image, first 5 of the right class"),
        ("precision_tr", "find the caption, right class"),
        ("vqa_acc/yes", "questions answered right, yes"),
        ("of_my_own", ""),
    ],
)
def test_metrics_are_explained_in_words(name: str, words: str):
    assert meaning(name) == words


# The sentence


def test_a_verdict_for_each_case():
    rule = Baseline("mlm_acc", "masked token", "wrong", "with a wrong image", "uses the image")
    gain, chance = "uses the image: mlm_acc 0.900, with a wrong image 0.500", share(500, 1000)
    same, few = "mlm_acc 0.510, with a wrong image 0.500", "with a wrong image 0.500)"

    def against(num_right: int, n: int, low: float, high: float) -> MeasuredValue:
        found = share(num_right, n)
        found.versus["wrong"] = [low, high]
        return found

    cases: list[tuple[float, float, tuple[str, bool]]] = [
        (share(900, 1000), chance, (f"{gain}, intervals apart", True)),
        (share(5100, 10000), share(5000, 10000), (f"{same}: no significant difference", False)),
        (
            share(300, 1000),
            chance,
            ("mlm_acc 0.300 is worse than with a wrong image (0.500, intervals apart)", False),
        ),
        (
            share(31, 62),
            chance,
            (
                f"too few rows to decide: 62 masked tokens, about 570 are needed (mlm_acc 0.500, {few}",
                False,
            ),
        ),
        (
            share(20, 20),
            chance,
            (
                f"too few rows to decide: 20 masked tokens, about 30 are needed (mlm_acc 1.000, {few}",
                False,
            ),
        ),
        (
            share(1, 1),
            chance,
            (
                f"too few rows to decide: 1 masked token, about 73 are needed (mlm_acc 1.000, {few}",
                False,
            ),
        ),
        (0.9, 0.5, (gain, True)),  # of an earlier version's log
        (
            against(510, 1000, 0.004, 0.016),
            chance,
            (f"uses the image: {same}, difference 0.004 to 0.016", True),
        ),
        (against(510, 1000, -0.004, 0.024), chance, (f"{same}: no significant difference", False)),
        (
            against(510, 1000, -0.1, 0.12),
            chance,
            (
                f"too few rows to decide: 1,000 masked tokens, about 4,800 are needed ({same})",
                False,
            ),
        ),
    ]
    for ours, wrong, expected in cases:
        assert rule.compare({"mlm_acc": ours, "wrong": wrong}) == expected
    assert rule.compare({"mlm_acc": share(1, 2)}) is None
    lower = Baseline("mse", "patch", "mean", "painting the mean", lower=True)
    numbers = {"mse": MeasuredValue(0.2, n=500, low=0.19, high=0.21, method="t"), "mean": 0.3}
    assert lower.compare(numbers) == (
        "mse 0.200 is better than painting the mean (0.300, intervals apart)",
        True,
    )
    assert lower.compare(numbers | {"mean": 0.1}) == (
        "mse 0.200 is worse than painting the mean (0.100, intervals apart)",
        False,
    )
    close = MeasuredValue(
        0.28214, n=500, low=0.2, high=0.3, method="t", versus={"mean": [-0.0006, -0.00004]}
    )
    for mean, shown in (
        (0.28246, "0.28214 is better than painting the mean (0.28246"),
        (0.3, "0.28214 is better than"),
    ):
        said, is_better = lower.compare({"mse": close, "mean": mean}) or ("", False)
        assert is_better and shown in said and ", difference -0.00060 to -0.00004)" in said
    assert lower.compare({"mse": 0.2, "mean": 0.20004}) == (
        "mse 0.20000 is better than painting the mean (0.20004)",
        True,
    )
    one_image = MeasuredValue(0.2, n=108, low=0.19, high=0.21, method="t", groups=1)
    assert lower.compare({"mse": one_image, "mean": 0.3}) == (
        "too few rows to decide: 108 patches in 1 group (rows of one image or one text), about 30 groups are needed "
        "(mse 0.200, painting the mean 0.300)",
        False,
    )


def test_numbers_of_the_same_rows_are_judged_by_their_difference():
    """Rows of very different hardness: both intervals are wide, yet nearly every row is a little
    better."""
    rng = np.random.default_rng(0)
    hard_R, row_M = rng.random(200), torch.arange(200).repeat_interleave(5)
    draw_M = rng.random(1000)
    sums, names = Sums(), [f"rows:{row}" for row in range(200)]
    for name, bonus in (("mlm_acc", 0.04), ("mlm_acc_wrong_image", 0.0)):
        sums.add(name, names, row_M, torch.tensor(draw_M < hard_R[row_M] + bonus))
    numbers = sums.result()
    ours, wrong = numbers["mlm_acc"], numbers["mlm_acc_wrong_image"]
    assert isinstance(ours, MeasuredValue) and isinstance(wrong, MeasuredValue)
    assert ours.low < wrong.high
    low, high = ours.versus["mlm_acc_wrong_image"]
    assert low < ours - wrong < high < 2 * (ours - wrong)
    assert "uses the image" in object.__new__(MaskedSignalEvaluator).comparison(numbers)


def test_verdicts_of_tasks():
    painted = {
        "recon": 0.282,
        "recon_wrong_caption": 0.283,
        "mim_mse": 0.358,
        "mim_mse_mean_baseline": 0.066,
    }
    worse = "mim_mse 0.358 is worse than painting the mean of the neighbours (0.066)"
    assert object.__new__(MlimEvaluator).comparison(painted) == worse
    used = "uses the caption: recon 0.282, with a wrong caption 0.283"
    assert (
        object.__new__(MlimEvaluator).comparison(painted | {"mim_mse": 0.05}).endswith(f"; {used}")
    )
    numbers = {
        "mlm_acc": share(500, 1000),
        "mlm_acc_unigram": share(600, 1000),
        "mlm_acc_wrong_image": share(100, 1000),
    }
    verdict = object.__new__(MaskedSignalEvaluator).comparison(numbers)
    assert (
        verdict
        == "mlm_acc 0.500 is worse than always guessing the most frequent word (0.600, intervals apart)"
    )
    assert object.__new__(NLVR2Evaluator).comparison({"nlvr2_acc": share(660, 1000)}) == (
        "nlvr2_acc 0.660 is better than chance (0.500, intervals apart)"
    )
    search = {"tr1": share(300, 1000), "tr1_chance": 0.012, "ir1": share(20, 1000)}
    assert (
        object.__new__(RetrievalEvaluator).comparison(search)
        == "tr1 0.300 is better than chance (0.012, intervals apart)"
    )
    assert object.__new__(NLVR2Evaluator).comparison({"num_pairs": 3}) == ""
    assert object.__new__(VQAEvaluator).comparison({"vqa_acc": share(660, 1000)}) == (
        "vqa_acc 0.660 (0.6301–0.6887, n 1,000), without a baseline to compare it with"
    )


@pytest.mark.parametrize("name", ["vqa", "classification"])
def test_what_is_better_than_a_guess_is_said_of_the_same_rows(name):
    """Baselines of questions, and of labels, with the difference row by row, against the two
    means."""
    if name == "classification":
        numbers = classification.summary([1, 1, 1, 0, 0, *[1] * 60], [*"aabab", *"ab" * 30])
        ours, base = numbers["acc"], "acc_majority"
    else:
        task = build(config_of(name, data={"train": ("scenes:train",)}))
        source = questions(23)
        dataset = evaluator_of(task).dataset([source], task.config, TOKENIZER)
        with pytest.MonkeyPatch.context() as patch:
            train = [
                (row.question, row.answers)
                for row in source.rows
                if row is not None and row.answers
            ]
            patch.setattr(vqa_evaluation, "training_questions", lambda _: train)
            with evaluation_batches(
                task, eval_loader(dataset, batch_size=5, rank=0, world=1), CPU, torch.float32
            ) as batches:
                evaluated = evaluator_of(task).evaluate_with_rows(batches)
            numbers = evaluated.numbers | evaluator_of(task).data_baselines(evaluated.examples)
        assert {
            "vqa_acc_majority",
            "vqa_acc_blind/colour",
            "vqa_acc_blind/number",
        } <= numbers.keys()
        assert numbers["vqa_acc"] == evaluated.numbers["vqa_acc"]
        ours, base = numbers["vqa_acc"], "vqa_acc_blind"
    assert isinstance(ours, MeasuredValue)
    low, high = ours.versus[base]
    assert low < ours - numbers[base] < high


def test_files_of_one_name_hold_different_rows(trained: Path, tmp_path: Path):
    """Both together, each with the other, and a smaller pool."""
    run = load_run(trained / "run")
    files = []
    for name, color in (("a", "red"), ("b", "blue")):
        files.append(write_rows(tmp_path / name, 20))
        files[-1].write_text(files[-1].read_text().replace("number", f"{color} number"))
    open_both = [open_sources([str(path)], run.config.data, 48) for path in files]
    a, b, both = (
        evaluated(run, 100, sources).row_scores
        for sources in (*open_both, [*open_both[0], *open_both[1]])
    )
    assert (len(a), len(b), len(both)) == (20, 20, 40)
    assert not a.keys() & b.keys()
    assert a.keys() | b.keys() >= {row for row in both if row in a or row in b}
    task = build(config_of("retrieval"))
    searches = []
    for count in (23, 12):
        dataset = evaluator_of(task).dataset(
            [ListSource(pairs(23).rows[:count])], task.config, TOKENIZER
        )
        with evaluation_batches(
            task, eval_loader(dataset, batch_size=5, rank=0, world=1), CPU, torch.float32
        ) as batches:
            searches.append(evaluator_of(task).evaluate_with_rows(batches).row_scores)
    assert not searches[0].keys() & searches[1].keys()
    assert len({intervals.group_of(row) for row in searches[0]}) == 23


def test_a_note_that_is_in_the_log_is_not_said_again(tmp_path: Path, capfd):
    for _ in range(2):
        log = RunLog(tmp_path, first_step=1, num_steps=1, enabled=True)
        log.note(1, "better than chance")
        log.row("val", 1, {"acc": share(3, 4)})
        log.close()
    assert [row["kind"] for row in read_log(tmp_path)] == ["note", "val", "val"]
    assert "acc 0.75±0.33" in capfd.readouterr().out
    assert all(isinstance(row["acc"], MeasuredValue) for row in read_log(tmp_path)[1:])


def test_broken_rows_of_validation_stop_a_run_unless_they_may_be_skipped(eve, tmp_path, no_report):
    train, val = write_rows(tmp_path / "train", 20), write_rows(tmp_path / "val", 10, broken=(2,))
    command = [
        "pretrain",
        "tiny",
        "--out",
        "run",
        "--data.train",
        train,
        "--data.val",
        val,
        "--train.steps",
        2,
    ]
    done = eve(*command)
    assert done.returncode == 2
    assert "--data.skip-invalid-val" in done.stderr
    done = eve(*command, "--data.skip-invalid-val")  # the same run goes on
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/metrics.json").read_text())["num_skipped"] == 1
    assert "rows left out, as they cannot be used: 1" in [
        row.get("text") for row in read_log(Path("run"))
    ]
    half = write_rows(
        tmp_path / "half", 20, broken=tuple(range(11))
    )  # more than either half of the rows holds
    held_out = [
        "--data.val",
        "held-out",
        "--data.val-fraction",
        0.5,
        "--data.max-invalid-fraction",
        1,
        "--out",
        "held",
    ]
    done = eve(
        *command[:2], "--data.train", half, "--train.steps", 2, "--train.batch-size", 4, *held_out
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(Path("held/metrics.json").read_text())["num_skipped"] > 0
    )  # of training's rows, which may be broken
    shutil.rmtree("run")
