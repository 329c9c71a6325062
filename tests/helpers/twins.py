"""Old names of slow_experts, random_weights, tiny_config, tiny_rows and checkpoint_shapes."""

# ruff: noqa: F401
from helpers.checkpoint_shapes import Shapes
from helpers.random_weights import randomize
from helpers.slow_experts import (
    TwinStats,
    in_rows,
    random_moe,
    router_sums,
    slow_balance,
    slow_entropy,
    slow_ffn,
    slow_gates,
    slow_mixture,
    slow_moe,
    slow_quick_gelu,
)
from helpers.tiny_config import changed_section, tiny_config
from helpers.tiny_rows import (
    ANSWERS,
    CAPTIONS,
    ListSource,
    caption_of,
    noise,
    pairs,
    questions,
    statements,
    tiny_tokenizer,
)
