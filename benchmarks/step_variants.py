"""Variants of the paper's Table 1 for `step_cost.py`.

The file has their configs, random pairs and the memory of a step. Memory is measured in a separate
process, because a process never lowers its recorded peak.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from eve_vl.config import Config
from eve_vl.data.batches import Sample
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.run.bench import now
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.devices import autocast, pick_device, pick_dtype
from eve_vl.train.optimizer import build_optimizer
from eve_vl.utils.errors import UserError
from eve_vl.utils.memory import keep_memory, peak_memory
from eve_vl.utils.seeds import seed_everything
from eve_vl.utils.threads import set_threads

Texts = Literal["captions", "full"]
BASELINE = "MLM+ITC+ITM"
CAPTION_TOKENS = (
    14.0,
    4.0,
)  # mean and standard deviation of lengths, [CLS] included: COCO's captions have 10.5 words
MIN_TOKENS = 6
MAX_STEP_SECONDS = 60.0  # longer steps are not run to test whether they fit
MAX_TRIES = 6


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    name: str
    config: Config
    decoder_depth: int
    """Depth of the pixel decoder; 0 without one."""
    paper_hours: float
    """Hours per epoch on 8 A100 at the largest batch that fits (paper Table 1)."""

    @property
    def is_eve(self) -> bool:
        """True for EVE, False for baselines."""
        return not isinstance(self.config.task, ContrastMatchConfig)


def variants(config: Config, decoder_depths: Sequence[int]) -> list[Variant]:
    """Return EVE at each decoder depth, then the baselines.

    Baselines with MIM have the recipe's decoder. Raises UserError if the recipe is no pre-training
    or a depth is not positive.
    """
    task = config.task
    if not isinstance(task, MaskedSignalConfig):
        raise UserError(f"recipe {config.recipe!r} is no pre-training")
    if not decoder_depths or min(decoder_depths) < 1:
        raise UserError(
            f"decoder depths {' '.join(map(str, decoder_depths))}: give at least one, each at "
            "least 1"
        )
    same: dict[str, Any] = {
        field.name: getattr(task, field.name) for field in fields(MaskedSignalConfig)
    }
    same |= {"mim_weight": 1.0, "mlm_weight": 1.0, "joint_masking": False}
    eves = {
        depth: replace(MaskedSignalConfig(**same), decoder_depth=depth) for depth in decoder_depths
    }
    every = ContrastMatchConfig(**same, projection_dim=getattr(task, "projection_dim", 0))
    baselines = {
        ("MLM+ITC+MIM", 3.26): replace(every, itm_weight=0.0),
        (BASELINE, 6.88): replace(every, mim_weight=0.0),
        ("MLM+ITC+ITM+MIM", 7.73): every,
    }
    named = {(f"MLM+MIM, decoder {depth}", 2.14): eve for depth, eve in eves.items()} | baselines
    return [
        Variant(
            name=name,
            config=replace(config, task=section),
            decoder_depth=section.decoder_depth if section.mim_weight else 0,
            paper_hours=hours,
        )
        for (name, hours), section in named.items()
    ]


def made_up_batch(config: Config, batch_size: int, texts: Texts) -> PairBatch:
    """Return random images and texts.

    Texts have full length, or the usual lengths of captions with padding.
    """
    sizes, task = config.input, config.task
    assert isinstance(task, MaskedSignalConfig)
    samples = []
    for row in range(batch_size):
        rng, length = generator(row), sizes.text_length
        if texts == "captions":
            length = int(
                np.clip(round(rng.normal(*CAPTION_TOKENS)), min(MIN_TOKENS, length), length)
            )
        keep_K, hidden_M = mask_patches(sizes.num_patches, task.image_mask_ratio, rng)
        samples.append(
            Sample(
                batch=PairBatch,
                image=torch.from_numpy(
                    rng.integers(0, 256, (3, sizes.image_size, sizes.image_size), dtype=np.uint8)
                ),
                ids_T=rng.integers(3, config.tokenizer.vocab_size, length),
                is_masked_T=mask_tokens(np.arange(length) == 0, task.text_mask_ratio, rng),
                keep_K=keep_K,
                hidden_M=hidden_M,
                image_id=row,
                caption=row,
                where=f"random[{row}]",
            )
        )
    return PairBatch.collate(samples, pad_id=0)


def tasks_of_one_model(
    configs: Sequence[Config], device: torch.device
) -> tuple[list[Task[Any]], dict[str, nn.Parameter]]:
    """Return the configs' tasks in training mode and their shared weights by name.

    Values are drawn carelessly, which takes seconds less at Base size.
    """
    tasks, shared = [], {}
    for config in configs:
        with torch.device("meta"):
            task = build_untrained(
                config, Sizes(vocab_size=config.tokenizer.vocab_size, mask_id=2)
            ).train()
        names = [name for name, _ in task.named_parameters()]
        for name, parameter in task.named_parameters():
            if name not in shared:
                value = torch.empty(parameter.shape, device=device)
                shared[name] = nn.Parameter(
                    value.fill_(1) if value.ndim < 2 else value.uniform_(-0.03, 0.03)
                )
        task.load_state_dict({name: shared[name] for name in names}, assign=True)
        tasks.append(task)
    return tasks, shared


# Memory


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Cost of a training step."""

    batch: int
    bytes: int
    """Weights, gradients, optimiser and activations; on CPU the whole process."""
    seconds: float
    """Time of forward and backward, the first in its process."""


Measure = Callable[[int], Peak | None]
"""Function that runs a step of N pairs; returns None if GPU memory is too small."""


def line(peaks: Sequence[Peak], name: str = "bytes") -> tuple[float, float]:
    """Fit a line of `bytes` or `seconds` through the two largest batches.

    Returns the value at batch 0 and the growth per pair. While activations are smaller than the
    gradients that take their place, memory does not grow at all.
    """
    first, second = sorted(peaks, key=lambda peak: peak.batch)[-2:]
    low, high = getattr(first, name), getattr(second, name)
    slope = max(0.0, (high - low) / (second.batch - first.batch))
    return high - slope * second.batch, slope


def at(peaks: Sequence[Peak], batch: int, name: str = "bytes") -> float:
    """Return bytes (or seconds) of a step: measured, else from the line."""
    start, slope = line(peaks, name)
    return next(
        (getattr(peak, name) for peak in peaks if peak.batch == batch), start + slope * batch
    )


def growth(measure: Measure, batch: int) -> list[Peak]:
    """Measure a quarter and a half of a batch.

    Raises UserError if that already exceeds memory.
    """
    small, peaks = max(1, batch // 4), []
    for size in (small, max(small + 1, batch // 2)):
        peak = measure(size)
        if peak is None:
            raise UserError(
                f"a batch of {size} does not fit the device's memory; give a smaller --batch"
            )
        peaks.append(peak)
    return peaks


def largest_batch(measure: Measure, peaks: list[Peak], cap: float) -> tuple[int, bool]:
    """Return the largest batch under `cap` bytes and whether a step of it was run.

    The batch is 0 if none fits. Runs what the line predicts, at most four times the largest
    measured, and fits the line again until both agree. Adds the measured peaks to `peaks`.
    """
    too_large = min((peak.batch for peak in peaks if peak.bytes > cap), default=1 << 31)
    for _ in range(MAX_TRIES):
        start, slope = line(peaks)
        most = min(4 * max(peak.batch for peak in peaks), too_large - 1)
        guess = min(most, int((cap - start) / slope)) if slope else most * (start <= cap)
        if guess <= _largest_that_fits(peaks, cap):
            break
        if at(peaks, guess, "seconds") > MAX_STEP_SECONDS:
            return guess, False
        peak = measure(guess)
        peaks += [peak] if peak else []
        if peak is None or peak.bytes > cap:
            too_large = guess
    return _largest_that_fits(peaks, cap), True


def _largest_that_fits(peaks: Sequence[Peak], cap: float) -> int:
    return max((peak.batch for peak in peaks if peak.bytes <= cap), default=0)


def in_own_process(config: Config, batch: int, texts: Texts) -> Peak | None:
    """Run one training step in a fresh process.

    Raises UserError if the process is killed.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(run_step, config, batch, texts).result()
    except BrokenProcessPool:
        raise UserError(
            f"the process of a step of {batch} was killed, out of memory perhaps; give a smaller "
            "--batch"
        ) from None


def run_step(config: Config, batch_size: int, texts: Texts) -> Peak | None:
    """Run one training step in this process and return its peak.

    Returns None if GPU memory is too small.
    """
    keep_memory()
    set_threads(config.train.threads)
    seed_everything(config.train.seed)
    device = pick_device(config.train.device)
    dtype = pick_dtype(config.train.dtype, device)
    try:
        (task,), shared = tasks_of_one_model([config], device)
        optimizer = build_optimizer(shared.items(), config.train, products=dtype)
        for (
            parameter
        ) in shared.values():  # create the optimiser's state first, as from the second step on
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        batch = made_up_batch(config, batch_size, texts).to(device)
        start = now(device)
        with autocast(device, dtype):
            loss = task(batch).loss
        loss.backward()
        seconds = now(device) - start
        nn.utils.clip_grad_norm_(shared.values(), 1.0)
        optimizer.step()
    except torch.OutOfMemoryError:
        return None
    return Peak(batch=batch_size, bytes=peak_memory(), seconds=seconds)
