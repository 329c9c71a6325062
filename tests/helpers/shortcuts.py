"""Shortcuts of runs in tests, in this process and in those that forked.py starts."""

import os
from functools import lru_cache

import torch

from eve_vl.run import run_tokenizer, training
from eve_vl.synthetic.scenes import rows
from eve_vl.tasks.vqa import evaluation as vqa_evaluation

vqa_evaluation.GENERATED_ROWS = (
    500  # training questions of the image-ablated baselines; 10,000 take seconds
)
run_tokenizer.ROWS_PER_TOKEN = (
    3  # 20 rows for each of 400 tokens take seconds; all of scenes:val are as many as without this
)
RUN_LINES = training.run_lines
training.run_lines = (
    lambda *_: []
)  # they trace every new config; run/test_startup_summary.py and recipes/test_start.py call them
torch.cpu._is_avx512_bf16_supported = lambda: (
    False
)  # bfloat16 compiles a kernel for each shape; its tests name it
rows.sample_scene, rows.captions = map(
    lru_cache(10_000), (rows.sample_scene, rows.captions)
)  # for all runs alike
os.fsync = lambda _: (
    None
)  # no test cuts the power, and a run syncs dozens of files, milliseconds each
