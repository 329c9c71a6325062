"""A training step waits for the device in listed places only.

Found without a GPU: what would copy from the device there, or size a tensor by the values of
another, is met here too.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

import eve_vl
import tests.tasks.test_classification as labelled
from eve_vl.config import Config, DualEncoderConfig, TrainConfig
from eve_vl.model import attention, experts
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import task_class
from eve_vl.train.trainer import Trainer
from helpers.mlim import mlim_config
from helpers.tiny_tasks import SECTIONS, TOKENIZER, build, rows_of, train_set
from helpers.tiny_towers import tiny_towers
from helpers.twins import pairs, tiny_config
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
}
READS |= {ATEN._linalg_svd, ATEN._linalg_eigh}  # which look whether they have converged
INDEXES = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
DECODER: dict[str, Any] = {"decoder_depth": 1, "decoder_dim": 16, "decoder_num_heads": 2}
# Where steps wait or, on a CPU alone, look as if they did, and why. This list may only become
# shorter.
WAITING = {
    "train/finite_check.py:finish": "reads whether the step before was finite, which a GPU has worked out by then",
    "model/packing.py:_num_texts": "counts padding on a CPU alone; a GPU computes padding whose number is not known",
    "train/random_state.py:set_rng_state": "reads states of generators, which lie on the host (contrast over micro-batches)",
    "tasks/contrast/global_negatives.py:_batch_of": "waits for the lengths of texts from other micro-batches or processes",
    "objectives.py:singular_values": "decomposes the similarities of a step (MedFLIP)",
}
# for how many rows each expert has: on a GPU grouped_mm is for bfloat16 alone
WAITING_IN_FLOAT32 = "model/experts.py:grouped_linear"


def waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation needs to know values on the host."""
    packet = func.overloadpacket
    if packet in INDEXES:
        return any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        )
    return packet in READS or (
        packet == ATEN.repeat_interleave and kwargs.get("output_size") is None
    )


class Watch(TorchDispatchMode):
    """Notes which functions of the package wait, of forward, backward and all else."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def note(self) -> None:
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(str(PACKAGE)):
            if frame.f_code.co_name == "_engine_run_backward":
                self.places.add("backward")
                return
            frame = frame.f_back
        assert frame is not None
        self.places.add(
            f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_code.co_name}"
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(func, args, kwargs or {}):
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch) -> Watch:
    watch = Watch()

    def noted(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            watch.note()
            return method(*args, **kwargs)

        return wrapped

    for name in (
        "tolist",
        "numpy",
        "cpu",
        "__array__",
    ):  # which a CPU's tensor does without an operation
        monkeypatch.setattr(Tensor, name, noted(getattr(Tensor, name)))
    return watch


CASES: dict[str, Callable[[dict[str, Any]], Config]] = {
    "masked signal": lambda model: tiny_config(
        task=MaskedSignalConfig(mask_replace_prob=0.5, **DECODER), model=model
    ),
    "contrast and matching": lambda model: tiny_config(
        task=ContrastMatchConfig(**DECODER), model=model
    ),
    "wrong pairs of all": lambda model: tiny_config(
        task=ContrastMatchConfig(itm_negatives="global", **DECODER), model=model
    ),
    "labels": lambda model: replace(
        labelled.config_of("both"), model=tiny_config(model=model).model
    ),
    **{
        name: lambda model, section=section: tiny_config(task=section, model=model)
        for name, section in SECTIONS.items()
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "experts": {},
    "dense": {"deep_ffn": "shared", "shallow_ffn": "shared"},
    "conv": {"stem": "conv", "deep_ffn": "modality"},
}
RANDOM_HALF: dict[str, Any] = {"itc_weight": 0.0, "itm_negatives": "random_half"}
SPREAD: dict[str, Any] = {
    "mlm_weight": 0.0,
    "itm_weight": 0.0,
    "itc_masked_image": True,
    "svd_form": "sigma1",
}
RUNS: dict[str, Config] = {
    f"{case}, {model}": make(MODELS[model]) for case, make in CASES.items() for model in MODELS
} | {
    "masked together": tiny_config(task=MaskedSignalConfig(joint_masking=True, **DECODER)),
    "ranking": tiny_config(
        task=RetrievalConfig(itc_weight=0.0, itm_loss="ranking", ranking_candidates=2, rerank=0)
    ),
    "official routing": tiny_config(model={"routing": "reference"}),
    "VLMo": tiny_config(
        task=ContrastMatchConfig(**DECODER),
        model=tiny_vlmo(),
    ),
    "MLIM": mlim_config(),
    "M3AE": tiny_towers(ContrastMatchConfig(mim_weight=1.0, **RANDOM_HALF, **DECODER)),
    "MedFLIP": tiny_config(
        task=ContrastMatchConfig(
            mlm_weight=0.0, itm_weight=0.0, itc_masked_image=True, svd_form="sigma1"
        ),
        model=DualEncoderConfig(
            embed_dim=16, num_heads=2, mlp_ratio=2.0, image_depth=2, text_depth=1
        ),
    ),
}


def step_of(config: Config, run: Path) -> Callable[[], object]:
    """A step of two micro-batches that begins on the device and leaves everything there, as on a
    GPU."""
    if config.task.name == "classification":
        task, batch = labelled.build(config), labelled.batch_of(config, 6)
    elif config.task.is_pretraining:
        task = build(config)
        batch = rows_of(
            task_class(type(config.task)).dataset([pairs(6)], config, TOKENIZER, training=True), 6
        )
    else:
        task, batch = build(config), rows_of(train_set(config, 6), 6)
    train = TrainConfig(
        steps=9, batch_size=12, accumulation=2, optimizer="muon", ema_decay=0.9, dtype="float32"
    )
    trainer = Trainer(train, run, task, device=torch.device("cpu"), texts={})
    trainer.finite_check.is_delayed = True  # as on a GPU
    return lambda: trainer.train_step([batch, batch])


def waiting(watch: Watch, name: str, run: Path) -> set[str]:
    """Return the places where a step of a run waits."""
    train_step = step_of(RUNS[name], run)
    train_step()  # in which the optimiser makes its state
    with watch:
        watch.places.clear()
        train_step()
    return watch.places


@pytest.mark.parametrize("name", RUNS)
def test_step_waits_in_listed_places_only(name, watch: Watch, tmp_path: Path):
    assert waiting(watch, name, tmp_path) <= set(WAITING)


def test_list_names_no_place_that_no_longer_waits(watch: Watch, tmp_path: Path):
    assert set(WAITING) == set.union(*(waiting(watch, name, tmp_path) | set() for name in RUNS))


def test_experts_wait_in_float32_on_a_gpu(watch: Watch, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        experts, "grouped_mm_works", lambda x_RI, _: x_RI.dtype == torch.bfloat16
    )  # as on CUDA
    assert waiting(watch, "masked signal, experts", tmp_path) - set(WAITING) == {WAITING_IN_FLOAT32}


@pytest.mark.parametrize("name", ["masked signal, experts", "retrieval, conv"])
def test_attention_by_lengths_waits_for_nothing(name, watch: Watch, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        attention, "can_use_varlen", lambda _, rows, __: rows.is_padding_BN is not None
    )  # as on CUDA
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
def test_each_kind_of_wait_is_noticed(wait, watch: Watch):
    class Waiting(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wait(x)

    watch.note = lambda: watch.places.add("it")
    with watch:
        Waiting()(torch.randn(5))
    assert watch.places
