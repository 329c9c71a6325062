"""Optimisation's section."""

import math
from dataclasses import dataclass
from typing import Literal

from eve_vl.config.base import negative, not_positive


def layer_decay(num_blocks: int, rate: float) -> tuple[tuple[str, float], ...]:
    """Return train.lr_multipliers that shrink by `rate` from each block of the encoder to the one below it, as in BEiT.

    Heads and the last norm keep the whole rate, the last block has `rate` times it, and what comes before the first block
    has rate^(num_blocks + 1).
    """
    below = rate ** (num_blocks + 1)
    blocks = ((f"encoder.blocks.{number}.*", rate ** (num_blocks - number)) for number in range(num_blocks))
    return ("encoder.[!b]*", below), ("encoder.norm.*", 1 / below), *blocks  # the first is for all but the blocks


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, validation and book-keeping."""

    steps: int = 480_000
    """Optimiser steps."""
    batch_size: int = 2048
    """Pairs per optimiser step, over all processes and accumulated micro-batches."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: the matrices of the blocks by Muon, at AdamW's learning rates, the rest by AdamW; learns in fewer samples."""
    lr: float = 5e-4
    """Peak learning rate."""
    head_lr_multiplier: float = 1.0
    """Learning rate of parameters that the --init run did not have, as a multiple of lr."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Name patterns and factors: parameters that a pattern matches learn that many times as fast; all that match multiply."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, such as encoder.blocks.0.*"""
    warmup: float = 0.02
    """Share of the steps with linear warm-up from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to 0 after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: float = 0.01
    """AdamW weight decay; biases, norms and other 1-D parameters are exempt."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Decay of moving averages of the weights per step, such as 0.999: validation, best/ and all that loads the run use these;
    0 turns them off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 where the processor multiplies it natively, else float32."""
    device: str = "auto"
    """Where to train, as torch spells it: cpu, cuda, cuda:1, mps; auto: cuda where there is one."""
    threads: int = 0
    """Processor threads of one process; 0: OMP_NUM_THREADS if set, else all cores where that pays, as is measured at first."""
    compile: bool = False
    """Compile the blocks with torch.compile: minutes at first, then faster steps; needs a C++ compiler."""
    checkpoint_activations: bool = False
    """Compute each block once more in the backward pass instead of keeping what it computed: less memory, slower steps."""
    seed: int = 0
    """Seed of weights, order, masks, augmentation and dropout."""
    log_every: int = 20
    """Steps between log lines."""
    val_every: int = 1000
    """Steps between validations; there is always one at the end."""
    patience: int = 0
    """Stop after so many validations without a better main number (of pre-training: mlm_loss, else mim_mse); 0: never."""
    save_every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = not_positive(
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
