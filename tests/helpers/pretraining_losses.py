"""Tiny pre-training tasks with different sets of losses."""

from typing import Any

from eve_vl.config import Config
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.task import Sizes
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DECODER: dict[str, Any] = {
    "decoder_depth": 1,
    "decoder_dim": 16,
    "decoder_num_heads": 2,
}
TASKS = {
    "mlm+mim": MaskedSignalConfig(**DECODER),
    "mlm+itc+mim": ContrastMatchConfig(mim_weight=1.0, itm_weight=0.0, **DECODER),
    "mlm+itc+itm": ContrastMatchConfig(**DECODER),
    "all": ContrastMatchConfig(mim_weight=1.0, **DECODER),
}


def config_of(name: str, **model: Any) -> Config:
    return tiny_config(task=TASKS[name], model=model)


def build(config: Config) -> Any:
    return build_untrained(config, Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=2))
