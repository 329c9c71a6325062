"""Tiny models under the names of published ones: EVE's recordings, timm, transformers."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from eve_vl.data.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def tiny_published(head: str = "vqa") -> dict[str, Tensor]:
    """Return the weights of the recorded tiny EVE, with a head unless it is ""."""
    tensors = load_file(GOLDEN / "tiny" / "state_backbone.safetensors")
    if head:
        tensors |= load_file(GOLDEN / "tiny" / f"state_head_{head}.safetensors")
    return tensors


def write_tokenizer_of_500(path: Path) -> Path:
    """Write a tokenizer of exactly 500 tokens, which is what the recorded EVE has."""
    captions = []
    for number in range(1000):
        captions.append(f"word{number:03} stands beside thing{number * 7 % 1000:03}")
    tokenizer = Tokenizer.train(captions, 500)
    assert tokenizer.vocab_size == 500
    path.write_text(tokenizer.to_json())
    return path


def timm_model(kind: str, depth: int = 3) -> Any:
    """Return a tiny image encoder of timm with weights that are nowhere 0 or 1."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 64,
        "depth": depth,
    }
    sizes |= {"num_heads": 2, "num_classes": 5}
    if kind == "vit":
        model = timm.models.vision_transformer.VisionTransformer(**sizes)
    elif kind == "vit with layer scale":
        model = timm.models.vision_transformer.VisionTransformer(**sizes, init_values=0.5)
    else:
        is_relative = kind == "beit with relative positions"
        model = Beit(
            **sizes,
            use_abs_pos_emb=not is_relative,
            use_rel_pos_bias=is_relative,
            init_values=0.3,
            global_pool="token",
        )
    return _shaken(model)


def transformers_model(kind: str) -> Any:
    """Return a tiny image encoder of transformers with weights that are nowhere 0 or 1."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    sizes |= {"image_size": 32, "patch_size": 8}
    if kind == "dinov2":
        return _shaken(Dinov2Model(Dinov2Config(**sizes, mlp_ratio=4)))
    # the epsilon of transformers, 1e-12, differs in the fifth decimal
    sizes |= {"intermediate_size": 256, "layer_norm_eps": 1e-6}
    if kind == "vit":
        return _shaken(ViTModel(ViTConfig(**sizes)))
    if kind == "vit with a head":
        return _shaken(ViTForImageClassification(ViTConfig(**sizes)))
    positions: dict[str, Any] = {"use_absolute_position_embeddings": True}
    positions["use_mean_pooling"] = False
    return _shaken(BeitModel(BeitConfig(**sizes, **positions)))


@torch.no_grad()
def _shaken(model: nn.Module) -> nn.Module:
    """Add noise to all weights of a model."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
