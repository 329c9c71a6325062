"""VQA and NLVR2: losses against loops, learning, evaluation independent of batching."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from eve_vl.config import Config
from eve_vl.data.kinds.questions import QuestionBatch
from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.evaluation.evaluate import with_settings
from eve_vl.run.loading import read_labels
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.vqa.task import VQA
from eve_vl.train.optimizer import build_optimizer
from eve_vl.utils.errors import UserError
from helpers.tiny_tasks import (
    ANSWER_LIST,
    SECTIONS,
    SIZES,
    build,
    config_of,
    eval_set,
    numbers_of,
    rows_of,
    shuffled,
    train_set,
)
from helpers.twins import questions, statements

COUNT = 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def vqa_task(**sections: Any) -> VQA:
    task = build(config_of("vqa", **sections))
    assert isinstance(task, VQA)
    return task


def nlvr2_task(name: str = "nlvr2", **sections: Any) -> NLVR2:
    task = build(config_of(name, **sections))
    assert isinstance(task, NLVR2)
    return task


def single(batch: Any, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids without padding, and the image in [-1, 1], of one row."""
    ids = batch.ids_BT[row : row + 1, : int((~batch.is_padding_BT[row]).sum())]
    return ids, batch.images_BCHW[row : row + 1].float() / 127.5 - 1


def states(task: Any, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The pair's states when it is alone in its batch, and where the text begins."""
    image = task.encoder.image(pixels)
    return task.encoder.encode(image, task.encoder.text(ids, None)).x_BND, image.num_image


# What is trained


TARGETS = [
    (("red",), {"red": 1.0}),
    (("A red",), {"red": 1.0}),
    (("purple",), {}),
    ((), {}),
    (
        ("two", "2", "Two.", "yes", "yes", "left", "purple", "purple", "a", "ring"),
        {"2": 0.9, "yes": 0.6, "left": 0.3, "ring": 0.3},
    ),
    (("yes",) * 4 + ("no idea",) * 6, {"yes": 1.0, "no idea": 1.0}),
    (("blue", "the blue"), {"A Blue!": 0.6}),
]


def test_targets_by_hand():
    task = vqa_task()
    rows = questions(len(TARGETS))
    batch = rows_of(train_set(task.config, len(TARGETS)), len(TARGETS))
    batch = replace(batch, answers=tuple(given for given, _ in TARGETS))
    found = task.targets(batch)
    assert found.shape == (len(rows), len(ANSWER_LIST))
    for row, (_, expected) in enumerate(TARGETS):
        wanted = [expected.get(answer, 0.0) for answer in ANSWER_LIST]
        assert found[row].tolist() == pytest.approx(wanted), TARGETS[row]


@torch.no_grad()
def test_vqa_loss_equals_a_loop_over_questions_and_answers():
    task = vqa_task(model={"balance_weight": 0.5})
    batch: QuestionBatch = rows_of(train_set(task.config, COUNT), COUNT)
    output, targets = task(batch), task.targets(batch)
    total = right = 0.0
    for row in range(COUNT):
        ids, pixels = single(batch, row)
        x, num_image = states(task, pixels, ids)
        logits = task.answer_head(x[:, num_image])[0].tolist()  # the text's [CLS]
        for logit, target in zip(logits, targets[row].tolist(), strict=True):
            probability = 1 / (1 + math.exp(-logit))
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
        right += targets[row, logits.index(max(logits))].item()
    assert output.terms["vqa"].item() == pytest.approx(total / COUNT, rel=1e-4)
    assert output.terms["target_acc"].item() == pytest.approx(right / COUNT, rel=1e-5)
    assert output.loss.item() == pytest.approx(
        (output.terms["vqa"] + 0.5 * output.terms["balance"]).item(), rel=1e-6
    )


@pytest.mark.parametrize("head", ["nlvr2", "nlvr2_paired", "nlvr2_compare"])
@torch.no_grad()
def test_nlvr2_loss_equals_a_loop_over_statements(head):
    task = nlvr2_task(head, model={"balance_weight": 0.5})
    batch: StatementBatch = rows_of(train_set(task.config, COUNT), COUNT)
    output = task(batch)
    total = right = 0.0
    for row in range(COUNT):
        ids, left = single(batch, row)
        right_pixels = batch.right_BCHW[row : row + 1].float() / 127.5 - 1
        (x, num_image), (y, _) = states(task, left, ids), states(task, right_pixels, ids)
        one, other = x[0, num_image], y[0, num_image]
        if head == "nlvr2":
            logits = task.concat_head(torch.cat([one, other])[None])[0]
        elif head == "nlvr2_compare":
            norm = task.compare_head.norm
            assert norm.running_mean is not None and norm.running_var is not None
            mean, std = norm.running_mean, (norm.running_var + norm.eps).sqrt()
            one, other = (one - mean) / std, (other - mean) / std
            compared = torch.cat(
                [one, other, torch.maximum(one, other) - torch.minimum(one, other), other * one]
            )
            logits = task.compare_head.classify(compared[None])[0]
        else:
            logits = task.paired_head(x, y, None)[0]
        no, yes = logits.tolist()
        probability = 1 / (1 + math.exp(no - yes))
        total -= math.log(probability if batch.labels[row] else 1 - probability)
        right += (yes > no) == batch.labels[row]
    assert output.terms["nlvr2"].item() == pytest.approx(total / COUNT, rel=1e-4)
    assert output.terms["acc"].item() == pytest.approx(right / COUNT)
    assert output.loss.item() == pytest.approx(
        (output.terms["nlvr2"] + 0.5 * output.terms["balance"]).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "nlvr2_paired", "nlvr2_compare"])
def test_without_experts_there_is_nothing_to_balance(name):
    task = build(config_of(name, model={"deep_ffn": "modality"}))
    output = task(rows_of(train_set(task.config, COUNT), COUNT))
    assert output.loss.item() == output.terms[name.partition("_")[0]].item()
    assert "balance" not in output.terms


@pytest.mark.parametrize("name", SECTIONS)
def test_every_weight_learns(name):
    task = build(config_of(name))
    batch = rows_of(train_set(task.config, COUNT), COUNT)
    task(batch).loss.backward()
    silent = [
        key
        for key, parameter in task.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not [
        key for key in silent if not key.startswith("paired_head.score")
    ]  # scores may all be cut off at 0


@pytest.mark.parametrize("name", SECTIONS)
def test_a_handful_of_rows_is_learnt_by_heart(name):
    config = config_of(name, data={"flip": False, "crop_scale": (1.0, 1.0)})
    task = build(config, noise=0).train()
    batch = rows_of(train_set(config, COUNT), COUNT)
    optimizer = build_optimizer(task.named_parameters(), replace(config.train, lr=3e-3))
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        output = task(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0], losses[::5]


# Evaluation


def test_vqa_answers_are_the_likeliest_of_the_list_in_order_of_id():
    task = vqa_task()
    dataset = eval_set(task.config, 9)
    found = evaluator_of(task).predict_all(shuffled(dataset, 4, seed=1))
    rows = questions(9)
    assert [each.question_id for each in found] == list(range(9))
    for row, each in enumerate(found):
        batch = dataset.collate([dataset[(0, 0, row)]])
        ids, pixels = single(batch, 0)
        with torch.no_grad():
            x, num_image = states(task, pixels, ids)
            chances = task.answer_head(x[:, num_image])[0].sigmoid()
        assert each.answer == ANSWER_LIST[int(chances.argmax())]
        assert each.probability == pytest.approx(chances.max().item(), rel=1e-4)
        assert (each.answers, each.answer_type, each.where) == (
            rows[row].answers,
            rows[row].answer_type,
            rows[row].where,
        )


def test_nlvr2_verdicts_come_in_order_of_identifier():
    task = nlvr2_task()
    dataset = eval_set(task.config, 9)
    found = evaluator_of(task).predict_all(shuffled(dataset, 4, seed=1))
    rows = sorted((statements(9)[row] for row in range(9)), key=lambda row: row.identifier)
    assert [(each.identifier, each.label, each.group) for each in found] == [
        (row.identifier, row.label, row.group) for row in rows
    ]
    assert [each.is_true for each in found] == [each.probability > 0.5 for each in found]
    assert len({each.is_true for each in found}) == 2


@pytest.mark.parametrize("name", SECTIONS)
def test_evaluation_depends_neither_on_batch_size_nor_on_order(name):
    task = build(config_of(name))
    dataset = eval_set(task.config)
    numbers = numbers_of(task, dataset, 7)
    assert numbers_of(task, dataset, 7) == numbers
    for size in (1, 64):
        assert numbers_of(task, dataset, size) == pytest.approx(numbers, rel=1e-6)
    for seed in range(3):
        assert evaluator_of(task).evaluate_with_rows(
            shuffled(dataset, 5, seed)
        ).numbers == pytest.approx(numbers, rel=1e-6)  # pyright: ignore
    assert not any(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize(
    ("name", "count", "without"),
    [("vqa", "num_questions", "num_unanswered"), ("nlvr2", "num_pairs", "num_unlabelled")],
)
def test_every_row_counts_once(name, count, without):
    task = build(config_of(name))
    numbers = numbers_of(task, eval_set(task.config, 23), 7)
    assert (numbers[count], numbers[without]) == (23, 3)
    few = config_of(name, data={"val_samples": 9})
    assert numbers_of(task, eval_set(few, 23), 7)[count] == 9


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "nlvr2_paired", "nlvr2_compare"])
@torch.no_grad()
def test_batch_mates_do_not_matter(name):
    task = build(config_of(name))
    dataset = eval_set(task.config, 8)
    samples = [dataset[(0, 0, row)] for row in range(8)]
    alone = torch.cat([task.predict(dataset.collate([sample]))[0] for sample in samples])  # pyright: ignore
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [5, 1, 7, 0], [2, 6], [3, 3, 3, 4]):
        together = task.predict(dataset.collate([samples[row] for row in order]))[0]  # pyright: ignore
        torch.testing.assert_close(together, alone[order], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_both_images_and_their_sides_matter():
    for head in ("nlvr2", "nlvr2_paired", "nlvr2_compare"):
        task = nlvr2_task(head)
        batch: StatementBatch = rows_of(eval_set(task.config, 4), 4)
        plain = task.predict(batch)[0]
        swapped = replace(batch, images_BCHW=batch.right_BCHW, right_BCHW=batch.images_BCHW)
        for other in (
            swapped,
            replace(batch, right_BCHW=batch.images_BCHW),
            replace(batch, images_BCHW=batch.right_BCHW),
        ):
            assert ((task.predict(other)[0] - plain).abs().amax(1) > 1e-3).all()


def test_a_task_wants_its_own_section():
    config: Config = config_of("vqa")
    with pytest.raises(AssertionError):
        NLVR2(config, SIZES)


# What follows from weights and labels


@pytest.mark.parametrize(
    ("name", "losses"),
    [("vqa", "vqa"), ("nlvr2", "nlvr2"), ("retrieval", "itc itm"), ("retrieval", "itc")],
)
def test_a_step_adds_up_losses_by_the_weights_of_the_section(name, losses):
    """A loss without a weight counts as it is; the routers' loss by the model's weight."""
    task = build(config_of(name, model={"balance_weight": 0.25}))
    given = {"retrieval": {"itc_weight": 0.5, "itm_weight": 3.0}}.get(name, {})
    task = with_settings(task, replace(task.settings, **given))
    values = {loss: torch.tensor(2.0 + number) for number, loss in enumerate(losses.split())}
    routers = task.routers(rows_of(train_set(task.config, COUNT), COUNT))
    output = task.output(values, routers, acc=torch.tensor(0.5))
    weights = {"itc": 0.5, "itm": 3.0}
    expected = sum(weights.get(loss, 1.0) * value.item() for loss, value in values.items())
    assert output.loss.item() == pytest.approx(expected + 0.25 * output.terms["balance"].item())
    assert {"acc", *values, "balance", "max_load/0", "entropy/1"} <= set(output.terms)
    assert task.output(values, []).loss.item() == pytest.approx(expected)


def test_a_twin_with_other_settings_shares_the_weights():
    task = build(config_of("retrieval"))
    twin = with_settings(task, replace(task.settings, rerank=2))
    assert (task.settings.rerank, twin.settings.rerank) == (4, 2)
    assert all(a is b for a, b in zip(task.parameters(), twin.parameters(), strict=True))


def test_weights_of_other_labels_are_of_no_use():
    """All but the layer whose rows stand for answers comes along, even where its shape would
    fit."""
    task = vqa_task()
    tensors = task.state_dict()
    assert task.init_weights_from(tensors, ANSWER_LIST).keys() == tensors.keys()
    for labels in (ANSWER_LIST[::-1], ANSWER_LIST[1:], ()):
        lost = tensors.keys() - task.init_weights_from(tensors, labels).keys()
        assert lost == {"answer_head.3.weight", "answer_head.3.bias"}
    nlvr2 = nlvr2_task()
    assert (
        nlvr2.init_weights_from(tensors, ANSWER_LIST).keys() == tensors.keys()
    )  # it has no labels of its own


def test_labels_come_back_from_the_file_of_a_run_folder(tmp_path):
    config = config_of("vqa")
    with pytest.raises(UserError, match=r"answers\.json: cannot be read \(No such file"):
        read_labels(tmp_path, config)
    (tmp_path / "answers.json").write_text(json.dumps(ANSWER_LIST))
    labels = read_labels(tmp_path, config)
    assert tuple(labels) == ANSWER_LIST
    assert vqa_task().answers == ANSWER_LIST
    prepared = VQA.prepare(config, [questions(9)], labels)
    assert (
        prepared.labels == ANSWER_LIST
    )  # a run that goes on keeps its list, whatever its questions would give today
    assert read_labels(tmp_path, config_of("nlvr2")) == []
