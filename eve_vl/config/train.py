"""Section of optimisation."""

import math
from dataclasses import dataclass
from typing import Literal

from eve_vl.config.base import negative, not_positive, wrong_choices


def layer_decay(num_blocks: int, rate: float) -> tuple[tuple[str, float], ...]:
    """Return train.lr_multipliers that shrink by `rate` per encoder block from the top, as in BEiT.

    Heads and the last norm keep the full rate. The last block has `rate`; the embeddings have rate^(num_blocks + 1).
    """
    below = rate ** (num_blocks + 1)
    blocks = ((f"encoder.blocks.{number}.*", rate ** (num_blocks - number)) for number in range(num_blocks))
    return ("encoder.[!b]*", below), ("encoder.norm.*", 1 / below), *blocks  # the first is for all but the blocks


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, validation and logging."""

    steps: int = 480_000
    """Optimiser steps."""
    batch_size: int = 2048
    """Rows per optimiser step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks at AdamW's learning rates, AdamW for the rest; needs fewer samples."""
    lr: float = 5e-4
    """Peak learning rate."""
    head_lr_multiplier: float = 1.0
    """Learning rate of parameters that the --init run lacks, as a multiple of lr."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Name patterns and learning-rate factors of the parameters that they match; several matches multiply."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, e.g. encoder.blocks.0.*"""
    warmup: float = 0.02
    """Share of the steps for the linear warm-up from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to 0 after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: float = 0.01
    """AdamW weight decay; biases, norms and other 1-D parameters are exempt."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay per step of the weights' moving averages, e.g. 0.999, which validation, best/ and every use of the run take;
    0: off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 if the processor multiplies it natively, else float32."""
    device: str = "auto"
    """Device by its torch name: cpu, cuda, cuda:1, mps; auto: cuda if there is one."""
    threads: int = 0
    """CPU threads of one process; 0: OMP_NUM_THREADS if set, else all cores if a first measurement shows that they pay."""
    compile: bool = False
    """Compile the blocks with torch.compile: takes minutes first, then steps are faster; needs a C++ compiler."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, slower steps."""
    seed: int = 0
    """Seed of weights, order, masks, augmentation and dropout."""
    log_every: int = 20
    """Steps between log lines."""
    val_every: int = 1000
    """Steps between validations; the last step always validates."""
    patience: int = 0
    """Validations without a better main number (pre-training: mlm_loss, else mim_mse) before training stops; 0: never."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each."""
        problems = wrong_choices(self) + not_positive(
            self, "steps batch_size accumulation lr head_lr_multiplier log_every val_every save_every keep_checkpoints"
        )
        if not problems and self.batch_size % self.accumulation:
            problems.append(f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}")
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)} is not in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas {self.betas} are not in [0, 1)")
        problems += [
            f"lr_multipliers: the factor of {pattern!r} must be above 0, got {factor}"
            for pattern, factor in self.lr_multipliers
            if not 0 < factor < math.inf
        ]
        problems += negative(self, "weight_decay clip_norm threads seed patience")
        return problems
