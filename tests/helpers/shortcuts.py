"""Shortcuts that make runs in tests quick: what the suite changes in the package, and why.

tests/conftest.py takes them in the process of the tests, forked.py in processes that it starts.
tests/end_to_end/test_end_to_end.py runs the whole way once without them.
"""

import os
from functools import lru_cache

import torch

from eve_vl.run import run_tokenizer, training
from eve_vl.synthetic.scenes import rows
from eve_vl.tasks.vqa import evaluation as vqa_evaluation

REAL_FSYNC = os.fsync
REAL_BFLOAT16_DETECTION = torch.cpu._is_avx512_bf16_supported
RUN_LINES = training.run_lines


def take_shortcuts() -> None:
    """Change the package in this process."""
    # no test cuts the power, and a run syncs dozens of files, milliseconds each
    os.fsync = lambda _: None
    # bfloat16 compiles a kernel for each shape, which takes longer than the steps
    torch.cpu._is_avx512_bf16_supported = lambda: False
    # the lines before training trace the model, seconds for each new config
    training.run_lines = lambda *_: []
    # the tokenizer reads 20 rows per token, which takes seconds
    run_tokenizer.ROWS_PER_TOKEN = 3
    # the baselines without the image answer 10,000 generated questions, which takes seconds
    vqa_evaluation.GENERATED_ROWS = 500
    # runs read the same generated scenes
    rows.sample_scene = lru_cache(10_000)(rows.sample_scene)
    rows.captions = lru_cache(10_000)(rows.captions)


take_shortcuts()
