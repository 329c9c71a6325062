"""Metrics of masked signal modelling against slow loops, for any batching and order.

Letters: P patches, X numbers of a patch, M masked tokens.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import Config
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics import intervals
from eve_vl.metrics.intervals import to_json
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.masked_signal.evaluation import visible_means
from eve_vl.tasks.masked_signal.sums import Sums
from eve_vl.tasks.masked_signal.task import MaskedSignal
from helpers.masked_pairs import VOCAB, masked_batch, masked_signal, patches_of
from helpers.measured import ends, measured
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def eval_batches(
    config: Config, size: int, order: Sequence[int] = range(10)
) -> Iterable[PairBatch]:
    dataset = MaskedPairs([pairs(10)], config, TOKENIZER, training=False)
    positions = eval_positions([10], 10)
    for start in range(0, 10, size):
        rows = order[start : start + size]
        yield PairBatch.collate([dataset[positions[row]] for row in rows], 0)


def eval_task(**section: object) -> MaskedSignal:
    """Return a task that guesses four frequent tokens only, so that it is sometimes right."""
    task = masked_signal(tiny_config(task=section), TOKENIZER.vocab_size, TOKENIZER.mask_id)
    if task.settings.mlm_weight:
        (batch,) = eval_batches(task.config, 10)
        frequent = Counter(batch.ids_BT[batch.is_masked_BT].tolist()).most_common(4)
        with torch.no_grad():
            bias_V = task.token_head.fc2.bias.fill_(-30)
            bias_V[[token for token, _ in frequent]] = 0.0
    return task


def certainty_of(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return n and both ends of the interval of each number."""
    flat = {}
    for name, interval in to_json(numbers)["certainty"].items():
        for end in ("n", "low", "high"):
            flat[f"{name} {end}"] = interval[end]
    return flat


# Numbers


@pytest.mark.parametrize("joint", [False, True])
def test_evaluation_depends_neither_on_batch_size_nor_on_order(joint):
    task = eval_task(joint_masking=joint)
    evaluator = evaluator_of(task)
    numbers = evaluator.evaluate(eval_batches(task.config, 10))
    assert numbers.keys() == {
        "mlm_acc",
        "mlm_acc_wrong_image",
        "mlm_acc_unigram",
        "mlm_loss",
        "mim_mse",
        "mim_mse_wrong_caption",
        "mim_mse_mean_baseline",
        "mim_mse_image_mean",
    }
    for size, order in (
        (1, range(10)),
        (4, [3, 9, 0, 1, 7, 5, 2, 8, 6, 4]),
    ):
        again = evaluator.evaluate(eval_batches(task.config, size, order))
        assert again == pytest.approx(numbers, rel=1e-5)
        assert certainty_of(again) == pytest.approx(certainty_of(numbers), rel=1e-5, abs=1e-9)
    assert len(certainty_of(numbers)) == 3 * len(numbers)
    assert not any(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_evaluation_numbers_equal_a_slow_loop(normalize):
    task = eval_task(normalize_targets=normalize)
    values: dict[str, list[float]] = defaultdict(list)
    targets: Counter[int] = Counter()

    def token_logits(batch: PairBatch) -> Tensor:
        return task.predict_tokens(task.encode(batch, mask=True), batch)

    def pixels(batch: PairBatch) -> np.ndarray:
        return task.predict_pixels(task.encode(batch, keep=True), batch)[0].numpy()

    for batch in eval_batches(task.config, 1):
        assert batch.wrong is not None
        masked_M = batch.ids_BT[batch.is_masked_BT]
        targets.update(masked_M.tolist())
        logits = token_logits(batch)
        wrong_logits = token_logits(replace(batch, images_BCHW=batch.wrong.images_BCHW))
        values["mlm_acc"] += (logits.argmax(-1) == masked_M).tolist()
        values["mlm_acc_wrong_image"] += (wrong_logits.argmax(-1) == masked_M).tolist()
        values["mlm_loss"] += F.cross_entropy(logits, masked_M, reduction="none").tolist()

        predicted_MX = pixels(batch)
        wrong_predicted_MX = pixels(batch.with_text_of(batch.wrong))
        patches_PX = patches_of(batch)[0].numpy()
        for row, position in enumerate(batch.hidden_BM[0].tolist()):
            target_X = patches_PX[position]
            near, whole = slow_guesses(patches_PX, batch.keep_BK[0].tolist(), position)
            if normalize:
                std = np.sqrt(target_X.var(ddof=1) + 1e-6)
                target_X = (target_X - target_X.mean()) / std
                near = whole = np.zeros_like(target_X)
            guesses = {
                "mim_mse": predicted_MX[row],
                "mim_mse_wrong_caption": wrong_predicted_MX[row],
                "mim_mse_mean_baseline": near,
                "mim_mse_image_mean": whole,
            }
            for name, guess_X in guesses.items():
                values[name] += ((guess_X - target_X) ** 2).tolist()
    expected = {name: float(np.mean(column)) for name, column in values.items()}
    expected["mlm_acc_unigram"] = max(targets.values()) / targets.total()
    numbers = evaluator_of(task).evaluate(eval_batches(task.config, 4))
    assert numbers == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "module"),
    [
        ("mim", "pixel_decoder"),
        ("mlm", "token_head"),
    ],
)
def test_weight_zero_leaves_the_pass_and_its_module_out(loss, module):
    task = eval_task(**{f"{loss}_weight": 0.0})
    assert not hasattr(task, module)
    output = task(masked_batch())
    assert loss not in output.terms
    output.loss.backward()
    for name, parameter in task.encoder.get_submodule("blocks").named_parameters():
        assert parameter.grad is not None, name
    numbers = evaluator_of(task).evaluate(eval_batches(task.config, 4))
    assert numbers
    assert not [name for name in numbers if name.startswith(loss)]


# Guesses without a model


def slow_guesses(
    patches_PX: np.ndarray, keep: Sequence[int], position: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one RGB colour for a hidden patch: the mean of its visible neighbours, if any; and the
    mean of all visible patches."""
    side = math.isqrt(len(patches_PX))
    color_P3 = patches_PX.reshape(len(patches_PX), 3, -1).mean(2)
    row, column = divmod(position, side)
    neighbours = []
    for patch in keep:
        distance = max(abs(patch // side - row), abs(patch % side - column))
        if distance == 1:
            neighbours.append(color_P3[patch])
    whole_3 = color_P3[list(keep)].mean(0)
    near_3 = np.mean(neighbours, axis=0) if neighbours else whole_3
    num_pixels = patches_PX.shape[1] // 3
    return np.repeat(near_3, num_pixels), np.repeat(whole_3, num_pixels)


def test_visible_means_are_on_the_device_of_the_patches():
    """The default device is another one here, and tensors of two devices do not mix."""
    inputs = (
        torch.randn(1, 4, 3),
        torch.tensor([[0, 3]]),
        torch.tensor([[1, 2]]),
    )
    expected = visible_means(*inputs)
    with torch.device("meta"):
        means = visible_means(*inputs)
    torch.testing.assert_close(means, expected, rtol=0, atol=0)


# Sums of rows


def test_sums_of_several_processes_give_the_numbers_of_one():
    logits = torch.randn(9, VOCAB)
    targets = torch.randint(0, 4, (9,))
    row_M = torch.tensor([0, 0, 0, 1, 2, 3, 4, 4, 5])
    predicted = torch.randn(6, 2, 5)
    pixel_targets = torch.randn(6, 2, 5)
    names = [f"rows:{row}" for row in range(6)]

    def collect(tokens: slice, rows: slice) -> Sums:
        sums = Sums()
        row_of_part_M = row_M[tokens] - rows.start
        sums.add_tokens("mlm_acc", logits[tokens], targets[tokens], row_of_part_M, names[rows])
        sums.add_pixels("mim_mse", predicted[rows], pixel_targets[rows], names[rows])
        return sums

    whole = Sums.whole([collect(slice(0, 9), slice(0, 6))])
    first = collect(slice(0, 5), slice(0, 3))
    second = collect(slice(5, 9), slice(3, 6))
    numbers = Sums.whole([second, first, Sums()]).result()
    expected = whole.result()
    assert numbers == pytest.approx(expected, rel=1e-6)
    assert certainty_of(numbers) == pytest.approx(certainty_of(expected), rel=1e-6)
    most_frequent = max(Counter(targets.tolist()).values())
    assert expected["mlm_acc_unigram"] == pytest.approx(most_frequent / 9)
    assert measured(expected["mlm_acc"]).n == 9  # tokens
    assert measured(expected["mim_mse"]).n == 12  # patches

    is_right = logits.argmax(1) == targets
    sums_of_rows = whole.by_row("mlm_acc")
    for row, name in enumerate(names):
        is_right_in_row = is_right[row_M == row]
        assert sums_of_rows[name].tolist() == [is_right_in_row.sum(), len(is_right_in_row)]


def test_masked_rows_of_an_image_are_one_group_and_are_compared_with_the_wrong_partner():
    names = ["1 | x", "2 | x", "3 | y", "4 | z"]
    row_M = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    right_M = torch.tensor([1, 1, 0, 1, 0, 1, 0])
    wrong_M = torch.tensor([1, 0, 0, 0, 0, 1, 1])
    sums = Sums()
    sums.add("mlm_acc", names, row_M, right_M)
    sums.add("mlm_acc_wrong_image", names, row_M, wrong_M)
    sums.add("mlm_accurate", names, row_M, wrong_M)
    sums.add("mlm_acc_of_fewer", names, row_M[:-1], wrong_M[:-1])
    accuracy = measured(sums.result()["mlm_acc"])
    assert (accuracy, accuracy.n, accuracy.groups) == (4 / 7, 7, 3)
    expected = intervals.mean(right_M.tolist(), list("xxxyyyz"))
    assert ends(accuracy) == pytest.approx(ends(expected))
    gain = intervals.difference(np.array([1, 0, 1, -1]) / 7, list("xxyz"), is_share=True)
    assert accuracy.versus.keys() == {"mlm_acc_wrong_image"}
    assert accuracy.versus["mlm_acc_wrong_image"] == pytest.approx([*ends(gain)])


def test_a_row_may_come_in_several_batches():
    sums = Sums()
    for values in ([1.0, 0.0], [0.0, 1.0]):
        sums.add(
            "mlm_acc",
            ["a", "b", "c"],
            torch.tensor([0, 1]),
            torch.tensor(values),
        )
        sums.add(
            "mlm_acc",
            ["b"],
            torch.tensor([0]),
            torch.tensor([1.0]),
        )
    sums_of_rows = {name: row.tolist() for name, row in sums.by_row("mlm_acc").items()}
    assert sums_of_rows == {
        "a": [1, 2],
        "b": [3, 4],
    }
