"""The section of training: optimisation, validation and logging."""

import math
from typing import Annotated, Literal

from eve_vl.config.sections import Count, CountOrZero, Positive, Share, Values, Weight


class TrainConfig(Values):
    """Optimisation, validation and logging."""

    steps: Count = 480_000
    """Optimiser steps."""
    batch_size: Count = 2048
    """Rows per optimiser step, over all processes and micro-batches."""
    accumulation: Count = 1
    """Micro-batches per optimiser step."""
    optimizer: Literal["adamw", "muon", "block_muon"] = "adamw"
    """muon: Muon for the blocks' matrices, AdamW for the rest. It takes AdamW's learning rates and
    needs fewer samples. block_muon: the same on 64 rows of a matrix at a time, where 64 divides its
    rows. A step takes less time; search among icons needs more steps (LOG.md)."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    head_lr_multiplier: Positive = 1.0
    """Learning rate of parameters that the --init run lacks, as a multiple of lr."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Name patterns and learning-rate factors of the parameters that they match; several matches
    multiply."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, e.g. encoder.blocks.0.*"""
    warmup: Share = 0.02
    """Share of the steps for the linear warm-up from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to 0 after warm-up."""
    betas: Annotated[tuple[float, float], "[0, 1)"] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay of AdamW and Muon: a step first multiplies the weights by 1 − lr ×
    weight_decay. Biases, norms and other 1-D parameters are exempt. In a run of few steps, only
    large values have an effect."""
    clip_norm: Weight = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema_decay: Share = 0.0
    """Decay per step of the weights' moving averages, e.g. 0.999, which validation, best/ and every
    use of the run take; 0: off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 if the processor multiplies it natively, else float32."""
    device: str = "auto"
    """Device by its torch name: cpu, cuda, cuda:1, mps; auto: cuda if there is one."""
    threads: CountOrZero = 0
    """CPU threads of one process; 0: OMP_NUM_THREADS if set, else one for a small model, and all
    cores for others."""
    compile: bool = False
    """Compile the blocks with torch.compile: takes minutes first, then steps are faster; needs a
    C++ compiler."""
    layout: Literal["replicate", "shard"] = "replicate"
    """What each process of torchrun holds. replicate: all weights. shard: a part of weights,
    gradients and optimiser state, for a model that does not fit; it sends more."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, slower steps."""
    seed: CountOrZero = 0
    """Seed of weights, order, masks, augmentation and dropout."""
    log_every: Count = 20
    """Steps between log lines."""
    val_every: Count = 1000
    """Steps between validations; the last step always validates."""
    patience: CountOrZero = 0
    """Validations without a better main number (pre-training: mlm_loss, else mim_mse) before
    training stops; 0: never."""
    save_every: Count = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints to keep."""

    def problems(self) -> list[str]:
        """Return the problems of values that do not go together, one sentence each."""
        problems = []
        if self.batch_size % self.accumulation:
            problems.append(
                f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}"
            )
        for name, factor in self.lr_multipliers:
            if not 0 < factor < math.inf:
                problems.append(
                    f"lr_multipliers: the factor of {name!r} must be above 0, got {factor}"
                )
        return problems
