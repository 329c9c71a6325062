"""Non-finite losses and gradients stop a run before they reach the weights, also if the host reads
them a step later."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eve_vl.train.step import StepOutput
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import SharedError
from helpers.number_task import CONFIG, Guess, no_bad_samples, step_folder, trainer_of

BAD_STEP = 3  # counted from 0
RUN_CONFIG = replace(
    CONFIG,
    steps=6,
    batch_size=10,
    accumulation=2,
    log_every=6,
    save_every=6,
    val_every=6,
    weight_decay=0.1,
    lr=0.02,
    warmup=0.1,
    ema_decay=0.9,
)
NAN = float("nan")
INF = float("inf")


@dataclass(kw_only=True)
class Rows:
    """A batch of states."""

    x_BD: Tensor
    where: tuple[str, ...]
    skipped: tuple = ()

    def to(self, device: torch.device) -> "Rows":
        return self


class Net(Guess):
    """Parameters for Muon and AdamW, and running averages."""

    def __init__(self) -> None:
        super().__init__([{"loss": 0.0}], main_metric=None)
        del self.weight
        self.blocks = nn.ModuleList([nn.Linear(6, 4)])
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(4, 1)

    def forward(self, batch: Rows) -> StepOutput:  # pyright: ignore
        logits_B1 = self.head(self.blocks[0](self.norm(batch.x_BD)))
        return StepOutput(loss=logits_B1.square().mean(), terms={})


class SteepNet(Net):
    """A net whose loss is finite but not its gradient."""

    def forward(self, batch: Rows) -> StepOutput:
        zero = (self.head.weight * 0).abs().sqrt().sum()  # its gradient is 0 · ∞
        return StepOutput(loss=super().forward(batch).loss + zero, terms={})


class DetachedNet(Net):
    """A net whose loss may be infinite although no gradient is."""

    def forward(self, batch: Rows) -> StepOutput:
        loss = super().forward(replace(batch, x_BD=batch.x_BD.nan_to_num(0, 0, 0))).loss
        return StepOutput(loss=loss + batch.x_BD.sum(), terms={})


def batches(bad_value: float | None, bad_index: int = 0) -> Iterator[Rows]:
    """Two a step; of step BAD_STEP the one with bad_index holds a value that is not finite."""
    for number in range(40):
        x_BD = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
        if bad_value is not None and number == 2 * BAD_STEP + bad_index:
            x_BD[0, 0] = bad_value
        yield Rows(x_BD=x_BD, where=tuple(f"{number}:{row}" for row in range(5)))


def new_trainer(
    run: Path, *, is_delayed: bool = False, net: type[Net] = Net, **changes: Any
) -> Trainer:
    """is_delayed: as on a GPU."""
    torch.manual_seed(0)
    trainer = trainer_of(run, net(), replace(RUN_CONFIG, **changes), texts={})
    trainer.finite_check.is_delayed = is_delayed
    return trainer


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return weights and optimiser state by name."""
    state = dict(trainer.task.state_dict())
    for name, parameter in trainer.task.named_parameters():
        for key, value in trainer.optimizer.state[parameter].items():
            state[f"{name}.{key}"] = value
    return state


def differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [name for name in expected if not torch.equal(tensors[name], expected[name])]


@pytest.mark.parametrize(
    ("optimizer", "bad_value", "bad_index", "is_delayed"),
    [
        ("adamw", NAN, 0, False),
        ("adamw", INF, 1, True),
        ("muon", INF, 1, False),
        ("muon", NAN, 0, True),
        ("block_muon", NAN, 1, False),
        ("block_muon", INF, 0, True),
    ],
)
def test_stopped_run_holds_the_state_before_the_step(
    tmp_path: Path, monkeypatch, optimizer, bad_value, bad_index, is_delayed
):
    monkeypatch.setattr("eve_vl.train.parameter_groups.BLOCK_ROWS", 2)  # the block has 4 rows
    finite_run = tmp_path / "finite"
    trainer = new_trainer(finite_run, optimizer=optimizer, save_every=BAD_STEP)
    trainer.fit(batches(None), [], no_bad_samples(finite_run))

    run = tmp_path / "run"
    trainer = new_trainer(run, optimizer=optimizer, is_delayed=is_delayed)
    with pytest.raises(SharedError, match=rf"^loss is not finite at step {BAD_STEP} \(loss nan"):
        trainer.fit(batches(bad_value, bad_index), [], no_bad_samples(run))
    assert trainer.step == BAD_STEP + (1 if is_delayed else 0)

    checkpoint = step_folder(finite_run, BAD_STEP)
    averages = load_file(checkpoint / "model.safetensors")
    expected = averages | load_file(checkpoint / "live.safetensors")
    expected |= load_file(checkpoint / "optimizer.safetensors")
    assert differences(state_of(trainer), expected) == []
    if not is_delayed:  # nothing reads the averages of a run that stops a step later
        names = trainer.averages.values.keys()
        expected_averages = {name: averages[name] for name in names}
        assert differences(trainer.averages.values, expected_averages) == []

    (folder,) = run.glob("non_finite_step_*")
    assert folder.name == f"non_finite_step_{BAD_STEP:08d}_rank_0"
    names = [f"{2 * BAD_STEP + bad_index}:{row}" for row in range(5)]
    assert (folder / "samples.txt").read_text().split("\n") == names
    assert not load_file(folder / "batch.safetensors")["x_BD"].isfinite().all()
    saved_weights = load_file(folder / "model.safetensors")
    assert differences(trainer.task.state_dict(), saved_weights) == []
    assert saved_weights.keys() == trainer.task.state_dict().keys()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_delayed_check_changes_nothing_in_a_finite_run(tmp_path: Path, optimizer):
    states = []
    for is_delayed in (False, True):
        run = tmp_path / str(is_delayed)
        trainer = new_trainer(run, optimizer=optimizer, is_delayed=is_delayed)
        trainer.fit(batches(None), [], no_bad_samples(run))
        states.append(state_of(trainer) | trainer.averages.values)
    assert differences(*states) == []


@pytest.mark.parametrize("is_delayed", [False, True])
@pytest.mark.parametrize(
    ("net", "bad_value", "problem"),
    [
        (SteepNet, None, "gradient norm is not finite at step 0"),
        (DetachedNet, INF, f"loss is not finite at step {BAD_STEP}"),
    ],
)
def test_loss_or_gradient_alone_that_is_not_finite_stops_too(
    tmp_path: Path, net, bad_value, problem, is_delayed
):
    trainer = new_trainer(tmp_path / "run", net=net, is_delayed=is_delayed)
    with pytest.raises(SharedError, match=f"^{problem}"):
        trainer.fit(batches(bad_value), [], no_bad_samples(tmp_path / "run"))


@pytest.mark.parametrize("due", ["log_every", "save_every", "val_every"])
def test_delayed_check_comes_before_anything_is_logged_or_saved(tmp_path: Path, due):
    run = tmp_path / "run"
    changes: dict[str, Any] = {due: BAD_STEP + 1}
    trainer = new_trainer(run, is_delayed=True, **changes)
    with pytest.raises(SharedError, match=f"^loss is not finite at step {BAD_STEP}"):
        trainer.fit(batches(NAN), [], no_bad_samples(run))
    assert (run / "log.jsonl").read_text() == ""
    assert not (run / "checkpoints").exists()
