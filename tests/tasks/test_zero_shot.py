"""Zero-shot classification against loops over images and prompts."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.eve import Eve
from eve_vl.tasks.contrast import pair_scores
from eve_vl.tasks.contrast.prompt_scorer import PromptScorer
from eve_vl.tasks.contrast.zero_shot import zero_shot
from eve_vl.utils.errors import UserError
from helpers.counted_rows import counted_rows
from helpers.measured import measured
from helpers.tiny_rows import ListSource
from helpers.tiny_runs import noise, tiny_run

BASELINE = Path(__file__).parents[1] / "compat" / "mlm_itc_itm"
PROMPTS = {
    "red": ("all red", "a red circle"),
    "blue": ("a blue square",),
    "gray": ("gray", "on gray", "two on gray"),
}
NAMES = tuple(PROMPTS)


def labeled(labels: Sequence[tuple[str, ...]]) -> ListSource[Any]:
    rows = []
    for row, row_labels in enumerate(labels):
        image = ImagePixels(pixels=noise(row))
        rows.append(
            LabeledExample(
                image=image,
                text=None,
                labels=row_labels,
                where=f"rows:{row}",
            )
        )
    return ListSource(rows)


def slow_class_scores(eve: Any, image: np.ndarray, by: str) -> list[float]:
    """Return the scores of the classes: by cosines, else by the log-odds of a match."""
    class_scores = []
    for texts in PROMPTS.values():
        scores = []
        for text in texts:
            if eve.task.is_comparable:
                scores.append(float(eve.encode_image(image)[0] @ eve.encode_text(text)[0]))
            else:
                probability = eve.match(image, text)
                scores.append(float(np.log(probability / (1 - probability))))
        class_scores.append(statistics.mean(scores) if by == "mean" else max(scores))
    return class_scores


@pytest.mark.parametrize(
    ("has_contrast", "by"),
    [
        (True, "mean"),
        (True, "max"),
        (False, "mean"),
    ],
)
def test_numbers_equal_a_loop_over_images_and_prompts(has_contrast, by):
    """Rows without labels are left out."""
    run = tiny_run("retrieval")
    run.task.is_comparable = has_contrast
    eve: Any = Eve(run)
    scores = [slow_class_scores(eve, noise(row), by) for row in range(7)]
    best = sorted(range(3), key=lambda number: -scores[6][number])[:2]
    top_two = eve.zero_shot(noise(6), PROMPTS, by=by, top=2)
    assert [result.label for result in top_two] == [NAMES[number] for number in best]
    expected = [scores[6][number] for number in best]
    assert [result.score for result in top_two] == pytest.approx(expected, abs=1e-4)

    labels: list[tuple[str, ...]] = [(NAMES[row % 3],) for row in range(7)]
    labels[4] = ()
    result = zero_shot(run, PROMPTS, [labeled(labels)], 100, by=by)
    is_right = {}
    for row, row_scores in enumerate(scores):
        if labels[row]:
            is_right[row] = np.argmax(row_scores) == row % 3
    numbers = result.numbers
    assert numbers["num_unlabelled"] == 1
    assert numbers["acc_chance"] == pytest.approx(1 / 3)
    assert numbers["acc"] == pytest.approx(statistics.mean(map(float, is_right.values())))
    for number, name in enumerate(NAMES):
        of_class = [float(right) for row, right in is_right.items() if row % 3 == number]
        assert numbers[f"recall/{name}"] == pytest.approx(statistics.mean(of_class))
        assert numbers[f"prior/{name}"] == pytest.approx(len(of_class) / 6)
    assert {"acc_majority", "acc_noise"} <= measured(numbers["acc"]).versus.keys()
    assert list(result.row_scores.values()) == list(is_right.values())


@pytest.mark.parametrize("num_samples", [1, 4])
def test_samples_are_ranked_if_any_row_has_several_labels(num_samples):
    source = labeled([("red", "blue"), ("gray",), ("blue",), ("red",)])
    numbers = zero_shot(tiny_run("retrieval"), PROMPTS, [source], num_samples).numbers
    assert numbers["num_rows"] == num_samples
    assert {"mean_ap", "mean_ap_noise"} <= numbers.keys()
    assert "acc" not in numbers
    if num_samples == 4:
        assert numbers["mean_ap_chance"] == pytest.approx((2 + 2 + 1) / 12)


def test_a_constant_score_gets_chance_whatever_the_priors():
    run = tiny_run("retrieval")
    labels = [("red",)] * 5 + [("blue",)] * 3 + [("gray",)] * 2
    scorer = PromptScorer(run.task, run.tokenizer, PROMPTS)
    numbers, _ = scorer.metrics(np.zeros((10, 3), np.float32), labels, several=False)
    for name in ("acc", "acc_chance", "recall/red"):
        assert numbers[name] == pytest.approx(1 / 3)


def test_matching_encodes_each_image_and_prompt_once(monkeypatch):
    """Towers are most of the work; pairs are joined four at a time."""
    run = tiny_run("retrieval")
    run.task.is_comparable = False
    scorer = PromptScorer(run.task, run.tokenizer, PROMPTS)
    images = torch.stack([torch.from_numpy(noise(row)).permute(2, 0, 1) for row in range(5)])
    with counted_rows(run.task, "encoder.image", "encoder.text") as num_rows:
        scores = scorer.scores(images)
    assert scores.shape == (5, 3)
    assert num_rows == {"encoder.image": 5, "encoder.text": 6}

    sizes: list[int] = []
    heads: Any = run.task.contrast
    match = heads.match

    def watched(encoder: Any, image: Any, text: Any) -> Any:
        sizes.append(len(image.x_BND))
        return match(encoder, image, text)

    monkeypatch.setattr(pair_scores, "PAIRS_AT_ONCE", 4)
    monkeypatch.setattr(heads, "match", watched)
    np.testing.assert_allclose(scorer.scores(images), scores, atol=1e-5)
    assert sizes == [4] * 7 + [2]


ONE_OF_EACH = [(name,) for name in NAMES]


@pytest.mark.parametrize(
    ("name", "labels", "problem"),
    [
        (
            "vqa",
            ONE_OF_EACH,
            "needs features of images and texts that compare, or a matching head; a vqa run has",
        ),
        ("retrieval", [(), ()], "the data: no row has a label to compare with"),
        (
            "retrieval",
            [*ONE_OF_EACH, *[()] * 20],
            "none of the 1 rows read has a label to compare with; raise --samples",
        ),
    ],
)
def test_runs_and_data_that_do_not_fit_are_refused(name, labels, problem):
    with pytest.raises(UserError, match=problem):
        zero_shot(tiny_run(name), PROMPTS, [labeled(labels)], 1)


def test_on_the_command_line(tmp_path: Path, capsys):
    data = tmp_path / "data"
    for name, color in (
        ("red", (200, 0, 0)),
        ("blue", (0, 0, 200)),
    ):
        (data / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20 + number, 20), color).save(data / name / f"{number}.png")
    prompts = tmp_path / "p.json"
    prompts.write_text('{"red": ["a red circle"], "blue": ["a blue circle"]}')
    words = ["evaluate", "zero_shot", str(BASELINE), "--data", str(data)]

    main([*words, "--prompts", str(prompts), "--json", str(tmp_path / "numbers.json")])
    output = capsys.readouterr().out
    assert "recall/blue" in output
    assert "comparison: too few rows to decide: 4 rows, about" in output
    assert json.loads((tmp_path / "numbers.json").read_text())["num_rows"] == 4

    main(["zero-shot", str(BASELINE), str(data / "red/0.png"), str(prompts)])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {"red", "blue"}

    for flags, problem in (
        (["--prompts", "none.json"], "none.json"),
        ([], "--prompts FILE"),
    ):
        with pytest.raises(SystemExit):
            main([*words, *flags])
        message = "".join(capsys.readouterr())
        assert message.count("\n") == 1
        assert problem in message
