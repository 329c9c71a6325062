"""A training step waits for the device in listed places only.

Found without a GPU: operations that would copy from the device there, or size a tensor by the
values of another, are met here too.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

import eve_vl
from eve_vl.config import Config, DualEncoderConfig, TaskConfig, TrainConfig
from eve_vl.model import attention, experts
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.train.trainer import Trainer
from helpers.mlim import mlim_config
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import CPU, SECTIONS, build, rows_of, train_set
from helpers.tiny_towers import tiny_towers
from helpers.vlmo import tiny_vlmo

PACKAGE = Path(eve_vl.__file__).parent
ATEN = torch.ops.aten
READS = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.equal,
    ATEN.bincount,
    ATEN._unique2,
    ATEN.unique_dim,
    ATEN._linalg_svd,  # these two look whether they have converged
    ATEN._linalg_eigh,
}
INDEXES = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
METHODS = ("tolist", "numpy", "cpu", "__array__")
"""Of a tensor on a CPU, which read it without an operation."""
WAITING = {
    "train/finite_check.py:finish": "reads whether the step before was finite, "
    "which a GPU has computed by then",
    "model/packing.py:_num_texts": "counts padding on a CPU alone; "
    "a GPU computes padding whose number is not known",
    "train/random_state.py:set_rng_state": "reads states of generators, "
    "which lie on the host (contrast over micro-batches)",
    "tasks/contrast/global_negatives.py:_batch_of": "waits for the lengths of texts "
    "from other micro-batches or processes",
    "objectives.py:singular_values": "decomposes the similarities of a step (MedFLIP)",
}
"""Where steps wait, or on a CPU alone look as if they did, and why. It may only become shorter."""
# for the number of rows of each expert: on a GPU grouped_mm is for bfloat16 alone
WAITING_IN_FLOAT32 = "model/experts.py:grouped_linear"


def waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation needs to know values on the host."""
    packet = func.overloadpacket
    if packet in INDEXES:
        masks = (torch.bool, torch.uint8)
        return any(isinstance(index, Tensor) and index.dtype in masks for index in args[1])
    if packet == ATEN.repeat_interleave:
        return kwargs.get("output_size") is None
    return packet in READS


class Watch(TorchDispatchMode):
    """Notes which functions of the package wait, of forward, backward and all else."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def note(self) -> None:
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name == "_engine_run_backward":
                self.places.add("backward")
                return
            if frame.f_code.co_filename.startswith(str(PACKAGE)):
                file = Path(frame.f_code.co_filename).relative_to(PACKAGE)
                self.places.add(f"{file}:{frame.f_code.co_name}")
                return
            frame = frame.f_back
        raise AssertionError("no function of the package waits")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        if waits(func, args, kwargs or {}):
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch) -> Watch:
    watch = Watch()

    def noted(method: Callable[..., Any]) -> Callable[..., Any]:
        def note_and_call(*args: Any, **kwargs: Any) -> Any:
            watch.note()
            return method(*args, **kwargs)

        return note_and_call

    for name in METHODS:
        monkeypatch.setattr(Tensor, name, noted(getattr(Tensor, name)))
    return watch


# Steps

DECODER: dict[str, Any] = {
    "decoder_depth": 1,
    "decoder_dim": 16,
    "decoder_num_heads": 2,
}
TASKS: dict[str, TaskConfig] = {
    "masked signal": MaskedSignalConfig(mask_replace_prob=0.5, **DECODER),
    "contrast and matching": ContrastMatchConfig(**DECODER),
    "wrong pairs of all": ContrastMatchConfig(itm_negatives="global", **DECODER),
    "labels": ClassificationConfig(inputs="both"),
    **SECTIONS,
}
DENSE = {"deep_ffn": "shared", "shallow_ffn": "shared"}
CONV = {"stem": "conv", "deep_ffn": "modality"}
RANKING = RetrievalConfig(
    itc_weight=0.0,
    itm_loss="ranking",
    ranking_candidates=2,
    rerank=0,
)
RANDOM_HALF = ContrastMatchConfig(
    mim_weight=1.0, itc_weight=0.0, itm_negatives="random_half", **DECODER
)
SPREAD = ContrastMatchConfig(
    mlm_weight=0.0, itm_weight=0.0, itc_masked_image=True, svd_form="sigma1"
)
TOWERS = DualEncoderConfig(
    embed_dim=16,
    num_heads=2,
    mlp_ratio=2.0,
    image_depth=2,
    text_depth=1,
)


def all_runs() -> dict[str, Config]:
    runs = {}
    for name, task in TASKS.items():
        runs[name] = tiny_config(task=task)
    runs["dense"] = tiny_config(task=TASKS["masked signal"], model=DENSE)
    runs["conv"] = tiny_config(task=TASKS["retrieval"], model=CONV)
    together = MaskedSignalConfig(joint_masking=True, **DECODER)
    runs["masked together"] = tiny_config(task=together)
    runs["ranking"] = tiny_config(task=RANKING)
    runs["official routing"] = tiny_config(model={"routing": "reference"})
    runs["VLMo"] = tiny_config(task=ContrastMatchConfig(**DECODER), model=tiny_vlmo())
    runs["MLIM"] = mlim_config()
    runs["M3AE"] = tiny_towers(RANDOM_HALF)
    runs["MedFLIP"] = tiny_config(task=SPREAD, model=TOWERS)
    return runs


RUNS = all_runs()


def waiting(watch: Watch, name: str, run: Path) -> set[str]:
    """Return the places where a step of two micro-batches waits.

    It begins on the device and leaves everything there, as on a GPU.
    """
    config = RUNS[name]
    task = build(config)
    batch = rows_of(train_set(config, 6), 6)
    train = TrainConfig(
        steps=9, batch_size=12, accumulation=2, optimizer="muon", ema_decay=0.9, dtype="float32"
    )
    trainer = Trainer(train, run, task, device=CPU, texts={})
    trainer.finite_check.is_delayed = True
    trainer.train_step([batch, batch])  # in which the optimiser makes its state
    with watch:
        watch.places.clear()
        trainer.train_step([batch, batch])
    return set(watch.places)


def test_steps_wait_in_the_listed_places_only(watch: Watch, tmp_path: Path):
    """The list names no place that no longer waits."""
    all_places = set()
    for name in RUNS:
        places = waiting(watch, name, tmp_path / name)
        assert places <= set(WAITING), name
        all_places |= places
    assert all_places == set(WAITING)


def test_experts_wait_in_float32_on_a_gpu(watch: Watch, tmp_path: Path, monkeypatch):
    def works_on_cuda(x_RI: Tensor, _: Any) -> bool:
        return x_RI.dtype == torch.bfloat16

    monkeypatch.setattr(experts, "grouped_mm_works", works_on_cuda)
    places = waiting(watch, "masked signal", tmp_path)
    assert places - set(WAITING) == {WAITING_IN_FLOAT32}


@pytest.mark.parametrize("name", ["masked signal", "conv"])
def test_attention_by_lengths_waits_for_nothing(
    name,
    watch: Watch,
    tmp_path: Path,
    monkeypatch,
):
    def can_on_cuda(_: Any, rows: Any, __: Any) -> bool:
        return rows.is_padding_BN is not None

    monkeypatch.setattr(attention, "can_use_varlen", can_on_cuda)
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, *_: q)
    assert waiting(watch, name, tmp_path) <= set(WAITING)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.equal(x, x),
        lambda x: torch.arange(3).repeat_interleave(x.abs().long()[:3]),
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: torch.linalg.svd(x[None]),
        lambda x: x.numpy(),
    ],
)
def test_each_kind_of_wait_is_noticed(wait, watch: Watch, monkeypatch):
    monkeypatch.setattr(watch, "note", lambda: watch.places.add("here"))
    with watch:
        wait(torch.randn(5))
    assert watch.places == {"here"}
