"""Two gloo processes under torchrun train, evaluate and resume as one process does, and are equal at all times."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from eve_vl.systems.mlim.config import PairConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.task import task_class
from eve_vl.train import processes
from eve_vl.train.data_parallel import without_gradient_averaging
from eve_vl.train.meter import TIMING
from eve_vl.utils.console import is_main
from helpers.tiny_tasks import SECTIONS, TOKENIZER, build, config_of, train_set
from helpers.twins import pairs, tiny_config
from helpers.two_process_runs import FLAGS, SAVED, STEPS, torchrun
from helpers.two_processes import (
    EVALUATED,
    IMAGES,
    NUM_ROWS,
    WORLD,
    contrast_of_features,
    drawn_negatives,
    evaluation,
    gradients_of_a_step,
    memory_step,
    mlim_step,
    running_mean_at_validation,
    systems_step,
)
from tests.systems.mlim.test_pair import items


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two_process_runs.py wrote before one of its processes was killed, and after both had been started again."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run").mkdir()
    stderr = torchrun(folder)
    # the launcher names the process that it sees end first: the killed one, or the other, whose connection has ended
    assert f"exitcode: -{signal.SIGKILL.value}" in stderr or "by peer" in stderr, (
        stderr
    )  # closed or reset
    return folder


def test_two_processes_give_the_single_process_curve(eve, folder: Path, tmp_path: Path):
    """On the command line, at the same global batch."""
    assert eve("pretrain", "tiny", "--out", "one", *FLAGS).returncode == 0
    one, two = (
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (tmp_path / "one", folder / "two")
    )
    for a, b in zip(one, two, strict=True):
        for timing in TIMING:
            a.pop(timing, None)
            b.pop(timing, None)
        assert (a.pop("kind"), a.pop("text", None)) == (b.pop("kind"), b.pop("text", None))
        sure_a, sure_b = (row.pop("certainty", {}) for row in (a, b))
        assert sure_a.keys() == sure_b.keys()
        for name, certain in sure_a.items():
            assert certain.pop("method") == sure_b[name].pop("method")
            differences, others = certain.pop("versus", {}), sure_b[name].pop("versus", {})
            assert certain == pytest.approx(sure_b[name], rel=2e-4, abs=2e-5)
            assert differences == {
                other: pytest.approx(ends, rel=2e-4, abs=2e-5) for other, ends in others.items()
            }
        assert a == pytest.approx(b, rel=2e-4, abs=2e-5)


def rows(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in TIMING} for row in found]


def test_a_killed_run_goes_on_bit_for_bit(folder: Path):
    assert sorted(path.name for path in (folder / "killed/checkpoints").iterdir()) == [
        "step_00000010",
        "step_00000020",
    ]
    for step in (SAVED, STEPS):
        for name in (
            "model",
            *(f"{part}_{rank}" for part in ("live", "optimizer", "rng") for rank in range(WORLD)),
        ):
            one, two = (
                load_file(folder / run / f"checkpoints/step_{step:08d}/{name}.safetensors")
                for run in ("whole", "killed")
            )
            assert one.keys() == two.keys()
            for key, value in one.items():
                assert torch.equal(value, two[key]) or key in ("python_gauss", "meter./counts"), (
                    step,
                    name,
                    key,
                )
    assert rows(folder / "whole") == rows(folder / "killed")


def test_all_processes_are_equal_and_as_their_checkpoint(folder: Path):
    one, two = (load_file(folder / f"whole/rank_{rank}.safetensors") for rank in range(2))
    saved = load_file(folder / f"whole/checkpoints/step_{STEPS:08d}/model.safetensors")
    assert one["compare_head.norm.running_mean"].abs().max() > 0.01
    for name, value in one.items():
        assert torch.equal(value, two[name]) and torch.equal(value, saved[name]), name


def test_many_small_updates_give_the_true_average(folder: Path):
    for rank in range(2):
        found = load_file(folder / f"updates_{rank}.safetensors")
        torch.testing.assert_close(
            found, {"mean": torch.tensor([5.0]), "var": torch.tensor([2.0])}, rtol=1e-5, atol=0
        )


def test_rows_of_other_processes_arrive_whole_or_as_wanted(folder: Path):
    first = torch.arange(4.0).view(2, 2)
    for rank in range(2):
        found = load_file(folder / f"rows_{rank}.safetensors")
        assert torch.equal(found["rows"], torch.cat([first, first + 10]))
        assert torch.equal(found["fetched"], found["rows"][found["wanted"]])
        assert found["gradient"].tolist() == [
            [3 * (1 + 2 * rank)] * 2,
            [3 * (2 + 2 * rank)] * 2,
        ]  # weights 1 and 2


def test_a_step_may_leave_parameters_without_a_gradient(folder: Path):
    one, two = (load_file(folder / f"texts_{rank}.safetensors") for rank in range(2))
    assert any(one[name].any() for name in one if "text" in name)
    for name, gradient in one.items():
        assert torch.equal(gradient, two[name]), name


def test_a_bad_row_of_one_process_is_one_line_in_all(folder: Path):
    one, two = ((folder / f"bad_{rank}.txt").read_text() for rank in range(2))
    assert one == two
    assert one.startswith("a row to evaluate on cannot be used, list:5: ")
    assert "\n" not in one


def test_an_error_of_one_process_is_one_line_in_all_and_keeps_the_weights(folder: Path):
    """The first process has reached the sums over all, whatever ends the second one's data."""
    one, two = ((folder / f"partner_{rank}.txt").read_text() for rank in range(2))
    assert one == two
    assert one.startswith(
        "list:17: none of the 18 validation pairs is usable and has another caption"
    )
    assert (folder / "partner/checkpoints/step_00000001/state.json").is_file()


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "device_id", "backend"),
    [("cpu", None, "gloo"), ("cuda:1", torch.device("cuda:1"), "cpu:gloo,cuda:nccl")],
)
def test_a_lost_process_is_noticed_and_a_gpu_belongs_to_its_process(
    name, device_id, backend, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda *args, **options: calls.append((args, options))
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.setup(torch.device(name))
    assert calls == [((backend,), {"timeout": timedelta(minutes=30), "device_id": device_id})]


@pytest.mark.parametrize("may_be_unused", [True, False])
def test_gradients_wait_for_the_last_micro_batch_unless_parameters_may_be_unused(
    group, may_be_unused
):
    """DDP averages none of a parameter that the last pass leaves out: after earlier passes, processes would drift apart."""
    model = DistributedDataParallel(torch.nn.Linear(2, 1), find_unused_parameters=may_be_unused)
    with without_gradient_averaging(model):
        assert model.require_backward_grad_sync == may_be_unused


def test_the_first_process_of_a_group_is_the_main_one(group, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert is_main()


@pytest.fixture(scope="module")
def found(folder: Path) -> list[tuple[dict[str, Tensor], dict[str, dict[str, float]]]]:
    """Tensors and numbers of each of two processes."""
    return [
        (
            load_file(folder / f"{rank}.safetensors"),
            json.loads((folder / f"{rank}.json").read_text()),
        )
        for rank in range(WORLD)
    ]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def whole_batch_contrast() -> dict[str, Tensor]:
    """The formula over all rows at once, by plain autograd."""
    rng = torch.Generator().manual_seed(0)
    image, text = (torch.randn(NUM_ROWS, 6, generator=rng).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.3, requires_grad=True)
    source_image = torch.tensor(IMAGES)
    target = (source_image[:, None] == source_image).float()
    target = target / target.sum(1, keepdim=True)
    scores = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / temperature
    loss = -((target * scores.log_softmax(1)).sum() + (target * scores.log_softmax(0)).sum()) / (
        2 * NUM_ROWS
    )
    loss.backward()
    gradients = {"temperature": temperature.grad, "image": image.grad, "text": text.grad}
    return {"loss": loss.detach()} | {
        name: value for name, value in gradients.items() if value is not None
    }


def test_contrast_of_two_processes_is_that_of_the_whole_batch(found):
    expected = whole_batch_contrast()
    assert set(expected) == {"loss", "temperature", "image", "text"}
    for tensors, _ in found:
        torch.testing.assert_close(part(tensors, "features."), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        contrast_of_features(), expected, rtol=1e-5, atol=1e-6
    )  # one process, no group


@pytest.mark.parametrize("step", [gradients_of_a_step, systems_step, memory_step, mlim_step])
def test_a_step_of_two_processes_has_the_gradients_of_one(step, found):
    expected = step()
    for tensors, _ in found:
        gradients = part(tensors, f"{step.__name__}.")
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert all(gradient.any() for gradient in expected.values())


@pytest.mark.parametrize("routing", ["dropless", "reference-dropless"])
def test_experts_can_be_split_over_processes_that_exchange_rows(routing, found):
    """`Experts` is a module of its own so that another one can replace it (tests/helpers/shared_experts.py)."""
    for tensors, _ in found:
        whole, alone, split = (
            part(tensors, f"experts.{routing}.{kind}.") for kind in ("whole", "alone", "split")
        )
        assert whole.keys() == alone.keys() == split.keys()
        assert sum(".experts." in name for name in whole) == 8
        torch.testing.assert_close(whole["loss"], split["loss"], rtol=1e-6, atol=0)
        for name, value in whole.items():
            assert torch.equal(value, alone[name]), name
            assert (value - split[name]).abs().max() <= 1e-5 * value.abs().max(), name


@pytest.mark.parametrize("policy", ["modality", "shared", "moe"])
@pytest.mark.parametrize("name", ["words", "pixels", "pair", *SECTIONS])
def test_parameters_without_a_gradient_are_announced(name, policy):
    """DistributedDataParallel waits for them otherwise, and fails at the second step."""
    model = {"deep_ffn": policy, "balance_weight": 0.0}
    if name in SECTIONS:
        config = config_of(name, model=model)
        dataset = train_set(config, NUM_ROWS)
    elif name == "pair":
        config = tiny_config(task=PairConfig(modality_dropout=False), model=model)
        dataset = task_class(PairConfig).dataset(
            [items(NUM_ROWS)], config, TOKENIZER, training=True
        )
    else:
        weights = {"mim_weight": float(name == "pixels"), "mlm_weight": float(name == "words")}
        settings = replace(MaskedSignalConfig(decoder_depth=1), **weights)
        config = tiny_config(task=settings, model=model)
        dataset = MaskedPairs([pairs(NUM_ROWS)], config, TOKENIZER, training=True)
    task = build(config).train()
    task(dataset.collate([dataset[0, 0, row] for row in range(NUM_ROWS)])).loss.backward()
    unused = [name for name, parameter in task.named_parameters() if parameter.grad is None]
    assert task.find_unused_parameters or not unused


def test_two_processes_draw_the_negatives_of_one(found):
    expected, own = drawn_negatives(), torch.arange(NUM_ROWS)
    for tensors, _ in found:
        drawn = part(tensors, "drawn_negatives.")
        assert drawn.keys() == expected.keys()
        assert all(torch.equal(drawn[name], rows) for name, rows in expected.items())
    is_foreign = expected["images"] // (NUM_ROWS // WORLD) != own // (NUM_ROWS // WORLD)
    assert is_foreign.any() and not is_foreign.all()
    assert (expected["images"] != own).all() and len(expected["images"].unique(dim=0)) > 1


def test_two_processes_judge_by_the_running_averages_of_all_rows(found, tmp_path):
    expected = running_mean_at_validation(tmp_path)
    assert expected.abs().max() > 0.01
    for tensors, _ in found:
        torch.testing.assert_close(tensors["running_mean"], expected, rtol=1e-3, atol=1e-6)


def test_evaluation_of_two_processes_counts_everything_once(found):
    expected = evaluation()
    assert set(expected) == {*EVALUATED, "masked_signal", "pair", "one image"}
    for _, numbers in found:
        for name, values in expected.items():
            assert numbers[name] == pytest.approx(values, rel=1e-6, abs=1e-9), name
    for name, number in (
        ("vqa", "vqa_acc"),
        ("nlvr2", "nlvr2_acc"),
        ("retrieval", "r_mean"),
        ("masked_signal", "mim_mse"),
    ):
        assert (
            expected[name][f"{number} low"]
            < expected[name][number]
            < expected[name][f"{number} high"]
        )
    assert expected["vqa"]["num_questions"] == expected["nlvr2"]["num_pairs"] == 23
