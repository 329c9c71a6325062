"""The initial value of every weight."""

from torch import nn

from eve_vl.config import ModelConfig
from eve_vl.model.block import Block

TEMPERATURE = 0.07  # initial temperature of the contrastive loss


def initialize(module: nn.Module, config: ModelConfig) -> None:
    """Set the initial value of every weight.

    | what | value |
    |---|---|
    | linear layers, experts, router, embeddings, [CLS], mask token | normal, std `init_std` |
    | positions | normal, std `pos_embed_init_std`, cut at 2 std |
    | convolutions | normal, std √(2 / fan-in), as ReLU wants (He et al. 2015) |
    | biases (q and v too) | 0; VQA and classification then set the last bias of their heads |
    | normalisations | weight 1, bias 0 |
    | LayerScale | `layer_scale` |
    | temperature | 0.07 |

    The published code cuts at one standard deviation, which leaves an effective std of 0.011; we
    keep BEiT's usual cut.
    """
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            _initialize_parameter(submodule, name, parameter, config)


def _initialize_parameter(
    module: nn.Module, name: str, parameter: nn.Parameter, config: ModelConfig
) -> None:
    """Set the initial value of a module's parameter."""
    is_normalisation = name == "weight" and parameter.ndim == 1
    if is_normalisation:
        nn.init.ones_(parameter)
    elif isinstance(module, nn.Conv2d) and name == "weight":
        nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    elif isinstance(module, nn.ConvTranspose2d) and name == "weight":
        fan_in = len(parameter)  # its channels, without overlap
        nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5)
    elif isinstance(module, Block) and name in ("scale1", "scale2"):
        nn.init.constant_(parameter, config.layer_scale_init)
    elif name == "temperature":
        nn.init.constant_(parameter, TEMPERATURE)
    elif "bias" in name:
        nn.init.zeros_(parameter)
    else:
        std = config.pos_embed_init_std if name == "positions" else config.init_std
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
