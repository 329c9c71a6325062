"""MLIM's pre-training: masked texts and whole reconstructed images in one pass."""

from eve_vl.systems.mlim.pretraining.config import MlimConfig as MlimConfig
