"""A run as one frozen `Config` that validates itself, and its sections."""

from eve_vl.config.config import Config as Config
from eve_vl.config.data import HELD_OUT as HELD_OUT
from eve_vl.config.data import HELD_OUT_TEST as HELD_OUT_TEST
from eve_vl.config.data import DataConfig as DataConfig
from eve_vl.config.flags import changed_flags as changed_flags
from eve_vl.config.flags import flat as flat
from eve_vl.config.input import InputConfig as InputConfig
from eve_vl.config.json_form import FORMAT as FORMAT
from eve_vl.config.json_form import config_from_dict as config_from_dict
from eve_vl.config.json_form import config_to_json as config_to_json
from eve_vl.config.json_form import to_dict as to_dict
from eve_vl.config.model import DualEncoderConfig as DualEncoderConfig
from eve_vl.config.model import EveModelConfig as EveModelConfig
from eve_vl.config.model import ModelConfig as ModelConfig
from eve_vl.config.task import TaskConfig as TaskConfig
from eve_vl.config.tokenizer import TokenizerConfig as TokenizerConfig
from eve_vl.config.training import TrainConfig as TrainConfig
