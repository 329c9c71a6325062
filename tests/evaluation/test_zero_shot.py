"""Classification by prompts and image-ablated baselines against loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.metrics.intervals import MeasuredValue, share
from eve_vl.systems.medical.phantoms.reports import class_prompts, sample_report
from eve_vl.systems.medical.phantoms.rows import PhantomQuestions
from eve_vl.systems.medical.phantoms.sampling import sample_phantom
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.contrast import pair_scores
from eve_vl.tasks.contrast.prompt_scorer import PromptScorer
from eve_vl.tasks.contrast.prompts import read_prompts
from eve_vl.tasks.contrast.zero_shot import zero_shot
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.errors import UserError
from helpers.tiny_runs import ANSWERS, noise, tiny_run
from helpers.tiny_tasks import TOKENIZER
from helpers.twins import ListSource, questions, tiny_config

BASELINE = Path(__file__).parents[1] / "compat" / "mlm_itc_itm"
PROMPTS = {
    "red": ("all red", "a red circle"),
    "blue": ("a blue square",),
    "gray": ("gray", "on gray", "two on gray"),
}


def labelled(labels: list[tuple[str, ...]]) -> ListSource[Any]:
    return ListSource(
        [
            LabeledExample(
                image=ImagePixels(pixels=noise(row)), text=None, labels=given, where=f"rows:{row}"
            )
            for row, given in enumerate(labels)
        ]
    )


# Prompts


def test_a_product_of_parts_and_the_texts_as_they_are():
    parts = {"severity": ["", "mild"], "what": ["edema", "congestion"]}
    prompts, _ = read_prompts({"edema": parts, "other": [" a  nodule "]})
    assert prompts["edema"] == ("edema", "congestion", "mild edema", "mild congestion")
    assert prompts["other"] == ("a nodule",)


def test_prompts_of_phantoms_occur_in_no_report():
    prompts = {text for texts in class_prompts().values() for text in texts}
    for split in ("train", "test"):
        said = {part.strip() for index in range(300) for part in _report(split, index).split(" . ")}
        assert len(said) > 300 and not said & prompts


def _report(split: str, index: int) -> str:
    return sample_report(split, sample_phantom(split, 0, index)).text.removesuffix(" .")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "p.json"),
        ("[]", "p.json"),
        ('{"red": ["red"]}', r"p\.json: names 1 classes, expected at least 2"),
        (
            '{"red": [], "blue": ["blue"]}',
            r"p\.json: the class 'red' has no prompts, or more than 100,000; expected a list of texts",
        ),
        ('{"red": "red", "blue": ["blue"]}', r"p\.json: the class 'red' has no prompts"),
        ('{"red": [""], "blue": ["blue"]}', r"p\.json: the class 'red' has an empty prompt"),
        (
            '{"red": ["red"], "blue": ["blue"]}',
            r"the data has the class 'gray', .*p\.json does not",
        ),
        (
            json.dumps({**PROMPTS, "pink": ["pink"]}),
            r"p\.json has the class 'pink', the data does not",
        ),
    ],
)
def test_prompt_files_that_do_not_fit(tmp_path: Path, text: str, problem: str):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        zero_shot(
            tiny_run("retrieval"),
            tmp_path / "p.json",
            [labelled([("red",), ("blue",), ("gray",)])],
            100,
        )


def test_built_in_prompts_are_those_of_the_classes_there():
    """Nobody in phantoms:test_novel is healthy."""
    run, rows = tiny_run("retrieval"), [labelled([("edema",), ("nodule",), ("edema",)])]
    given = {name: texts for name, texts in class_prompts().items() if name in ("edema", "nodule")}
    assert zero_shot(run, "phantoms", rows, 100) == zero_shot(run, given, rows, 100)


def test_built_in_prompts_of_none_of_the_classes_are_refused():
    others = [labelled([("Cardiomegaly",), ("Edema",)])]
    with pytest.raises(
        UserError, match="the data has the class 'Cardiomegaly', prompts phantoms does not"
    ):
        zero_shot(tiny_run("retrieval"), "phantoms", others, 100)


# Scores and numbers


@pytest.mark.parametrize("by", ["mean", "max"])
@pytest.mark.parametrize("has_contrast", [True, False])
def test_numbers_equal_a_loop_over_images_and_prompts(has_contrast, by):
    """By features, or by the matching head of a run without such; rows without labels are left
    out."""
    run, names = tiny_run("retrieval"), list(PROMPTS)
    run.task.is_comparable = has_contrast
    labels: list[tuple[str, ...]] = [(names[row % 3],) if row != 4 else () for row in range(11)]
    eve = Eve(run)

    def score(image: np.ndarray, text: str) -> float:
        if has_contrast:
            return float(np.dot(eve.encode_image(image)[0], eve.encode_text(text)[0]))
        probability = eve.match(image, text)
        return float(np.log(probability / (1 - probability)))

    rows = [
        [[score(noise(row), text) for text in PROMPTS[name]] for name in names] for row in range(11)
    ]
    classes = [
        [sum(each) / len(each) if by == "mean" else max(each) for each in row] for row in rows
    ]
    for row in (0, 7):
        found = eve.zero_shot(noise(row), PROMPTS, by=by, top=2)
        best = sorted(range(3), key=lambda c: -classes[row][c])[:2]
        assert [(each.label, each.score) for each in found] == [
            (names[c], pytest.approx(classes[row][c], abs=1e-4)) for c in best
        ]
    found = zero_shot(run, PROMPTS, [labelled(labels)], 100, by=by)
    guesses = [names[int(np.argmax(row))] for row in classes]
    known = [(guess, given[0]) for guess, given in zip(guesses, labels, strict=True) if given]
    numbers = found.numbers
    assert numbers["num_unlabelled"] == 1 and numbers["acc_chance"] == pytest.approx(1 / 3)
    assert numbers["acc"] == pytest.approx(sum(guess == true for guess, true in known) / 10)
    for name in names:
        own = [guess == name for guess, true in known if true == name]
        assert numbers[f"recall/{name}"] == pytest.approx(sum(own) / len(own))
        assert numbers[f"prior/{name}"] == pytest.approx(len(own) / 10)
    assert (
        isinstance(numbers["acc"], MeasuredValue)
        and {"acc_majority", "acc_noise"} <= numbers["acc"].versus.keys()
    )
    assert list(found.row_scores.values()) == [float(guess == true) for guess, true in known]


def test_rows_of_several_labels_are_ranked():
    run = tiny_run("retrieval")
    found = zero_shot(
        run, PROMPTS, [labelled([("red", "blue"), ("gray",), ("blue",), ("red",)])], 100
    ).numbers
    assert {"mean_ap", "mean_ap_chance", "mean_ap_noise"} <= found.keys() and "acc" not in found
    assert found["mean_ap_chance"] == pytest.approx((2 + 2 + 1) / 12)


def test_all_rows_tell_whether_they_are_ranked():
    """Not those that --samples happens to take."""
    rows = labelled([("red", "blue"), *[("gray",)] * 20])
    for num_samples in (1, 21):
        found = zero_shot(tiny_run("retrieval"), PROMPTS, [rows], num_samples).numbers
        assert "mean_ap" in found and "acc" not in found and found["num_rows"] == num_samples


def test_a_constant_score_is_worth_chance_and_no_prior():
    run, labels = tiny_run("retrieval"), [("red",)] * 5 + [("blue",)] * 3 + [("gray",)] * 2
    scorer = PromptScorer(
        run.task,
        run.tokenizer,
        {name: ("the same",) * number for number, name in enumerate(PROMPTS, 1)},
    )
    numbers, _ = scorer.metrics(np.zeros((10, 3), np.float32), labels, several=False)
    assert numbers["acc"] == pytest.approx(numbers["acc_chance"]) == pytest.approx(1 / 3)
    assert numbers["recall/red"] == pytest.approx(1 / 3)


def test_matching_encodes_each_side_once(monkeypatch):
    """Towers are most of the work; joining is done for every pair, some at a time."""
    run, seen, joined = tiny_run("retrieval"), {"image": 0, "text": 0}, []
    run.task.is_comparable = False
    scorer, encoder = PromptScorer(run.task, run.tokenizer, PROMPTS), run.task.encoder
    for side in seen:
        module = getattr(encoder, side)

        def counted(x, *rest, side=side, embed=module.forward):
            seen[side] += len(x)
            return embed(x, *rest)

        monkeypatch.setattr(module, "forward", counted)
    images = torch.stack([torch.from_numpy(noise(row)).permute(2, 0, 1) for row in range(5)])
    heads: Any = run.task.contrast
    match = heads.match
    score_BC = scorer.scores(images)
    assert score_BC.shape == (5, 3)
    assert seen == {"image": 5, "text": sum(map(len, PROMPTS.values()))}
    monkeypatch.setattr(pair_scores, "PAIRS_AT_ONCE", 4)
    monkeypatch.setattr(
        heads, "match", lambda *pairs: joined.append(len(pairs[1].x_BND)) or match(*pairs)
    )
    np.testing.assert_allclose(scorer.scores(images), score_BC, atol=1e-5)
    assert joined == [4] * 7 + [2]


def test_runs_and_data_that_cannot():
    with pytest.raises(
        UserError,
        match="needs features of images and texts that compare, or a matching head; a vqa run has",
    ):
        zero_shot(tiny_run("vqa"), PROMPTS, [labelled([(name,) for name in PROMPTS])], 100)
    with pytest.raises(UserError, match="the data: no row has a label to compare with"):
        zero_shot(tiny_run("retrieval"), PROMPTS, [labelled([(), ()])], 100)
    few = labelled([*((name,) for name in PROMPTS), *[()] * 20])
    with pytest.raises(
        UserError,
        match="the data: none of the 1 rows read has a label to compare with; raise --samples",
    ):
        zero_shot(tiny_run("retrieval"), PROMPTS, [few], 1)


def test_as_people_ask_for_it(tmp_path: Path, capsys):
    for name, color in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20 + number, 20), color).save(
                tmp_path / "data" / name / f"{number}.png"
            )
    (tmp_path / "p.json").write_text('{"red": ["a red circle"], "blue": ["a blue circle"]}')
    data, out = str(tmp_path / "data"), tmp_path / "numbers.json"
    main(
        [
            "evaluate",
            "zero_shot",
            str(BASELINE),
            "--data",
            data,
            "--prompts",
            str(tmp_path / "p.json"),
            "--json",
            str(out),
        ]
    )
    said = capsys.readouterr().out
    assert (
        "recall/blue" in said
        and "prior/red" in said
        and "comparison: too few rows to decide: 4 rows, about" in said
    )
    assert json.loads(out.read_text())["num_rows"] == 4
    main(["zero-shot", str(BASELINE), str(tmp_path / "data/red/0.png"), str(tmp_path / "p.json")])
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {"red", "blue"}
    for flags, problem in (
        (["--prompts", str(tmp_path / "none.json")], "none.json"),
        ([], "--prompts FILE"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", "zero_shot", str(BASELINE), "--data", data, *flags])
        said = "".join(capsys.readouterr())
        assert said.count("\n") == 1 and problem in said


# Blind rows


def test_noise_has_the_histogram_and_nothing_else():
    rows = QuestionRows([questions(6)], tiny_config(task=VQAConfig()), TOKENIZER, training=False)
    blind = AblatedRows(rows, "noise")
    for row in range(6):
        ours, theirs = (each[0, 0, row].image.flatten(1).T.tolist() for each in (rows, blind))
        assert sorted(ours) == sorted(theirs) and ours != theirs
        assert torch.equal(blind[0, 0, row].image, AblatedRows(rows, "noise")[0, 0, row].image)
    assert blind[0, 0, 1].ids_T.tolist() == rows[0, 0, 1].ids_T.tolist()


def test_a_wrong_image_is_of_the_same_patient_and_looks_different():
    source = PhantomQuestions(split="test", image_size=64, num_rows=12)
    config = tiny_config(task=VQAConfig(), input={"image_size": 64, "patch_size": 16})
    rows = QuestionRows([source], config, TOKENIZER, training=False)
    blind, drawn = AblatedRows(rows, "wrong_image"), [rows[0, 0, row].image for row in range(12)]
    num_of_pair = 0
    for row in range(12):
        shown = blind[0, 0, row].image
        assert not torch.equal(shown, drawn[row]) and any(
            torch.equal(shown, each) for each in drawn
        )
        if not torch.equal(
            drawn[row], drawn[row ^ 1]
        ):  # else the pair asks two things about one image
            num_of_pair += 1
            assert torch.equal(shown, drawn[row ^ 1])
    assert num_of_pair
    assert (
        AblatedRows(rows, "image_only")[0, 0, 0].ids_T.tolist()
        == TOKENIZER.encode("", 9)[0].tolist()
    )


def test_blind_numbers_stand_beside_those_of_questions(monkeypatch):
    monkeypatch.setattr(
        "eve_vl.tasks.vqa.evaluation.training_questions",
        lambda _: [("is it so", ("red",)), ("is it", ("no",))],
    )
    run, asked = tiny_run("vqa"), questions(20)
    numbers = evaluated(run, 100, [asked]).numbers
    of_blind = {"vqa_acc_noise", "vqa_acc_wrong_image", "vqa_acc_image_only"}
    assert of_blind <= numbers.keys()
    assert not of_blind & evaluated(run, 100, [asked], ablations=False).numbers.keys()
    assert isinstance(numbers["vqa_acc"], MeasuredValue)
    assert {"vqa_acc_noise", "vqa_acc_wrong_image"} <= numbers["vqa_acc"].versus.keys()
    assert {"vqa_acc_words", "vqa_acc_blind"} <= numbers.keys()
    outside = sum(
        bool(row.answers) and not {*row.answers} & {*ANSWERS} for row in asked.rows if row
    )
    assert numbers["num_outside_list"] == outside > 0
    (remark,) = evaluator_of(run.task).warnings(numbers)
    assert (
        remark
        == f"of 18 questions, {outside} have an answer that is not among the run's 4 answers: always wrong"
    )


def test_the_best_of_several_blind_baselines_counts():
    rule = Baseline(
        "acc",
        "row",
        "prior",
        "the prior",
        "sees",
        others={"noise": "noise", "wrong": "a wrong image"},
    )
    numbers = {"acc": share(80, 100), "prior": 0.2, "noise": share(50, 100)}
    judged = rule.compare(numbers)
    assert judged is not None
    assert judged == (
        "sees: acc 0.800, the best of 2 baselines, noise 0.500, intervals apart",
        True,
    )
    judged = rule.compare(numbers | {"wrong": share(78, 100)})
    assert judged is not None
    assert not judged[1] and "the best of 3 baselines, a wrong image 0.780" in judged[0]
