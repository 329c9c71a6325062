"""Checkpoints of M3AE with the names and shapes that the code of zhjohnchan/M3AE gives them.

With clip16 and text_roberta. Letters: D width, V words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.checkpoint_shapes import Shapes

NUM_LABELS = 5
TASK_OF_HEAD = {
    "pairs": "contrast_match",
    "vqa": "vqa",
    "cls": "classification",
    "irtr": "retrieval",
    "": "headless",
}


@dataclass(frozen=True)
class M3aeSize:
    """Sizes of a model; positions: of texts, two more than it has tokens."""

    D: int
    image_depth: int
    text_depth: int
    fusion_depth: int
    side: int
    patch: int
    V: int
    positions: int
    decoder: int
    clip_text: int


TINY = M3aeSize(
    D=32,
    image_depth=3,
    text_depth=2,
    fusion_depth=2,
    side=3,
    patch=4,
    V=270,
    positions=20,
    decoder=16,
    clip_text=16,
)
PUBLISHED = M3aeSize(
    D=768,
    image_depth=11,
    text_depth=12,
    fusion_depth=6,
    side=18,
    patch=16,
    V=50_265,
    positions=514,
    decoder=384,
    clip_text=512,
)


def shapes_of(head: str, size: M3aeSize) -> Shapes:
    """Return the names and shapes of a checkpoint; head: a key of TASK_OF_HEAD."""
    D = size.D
    shapes = Shapes()
    _add_clip(shapes, size)
    _add_roberta(shapes, size)
    shapes["modality_type_embeddings.weight"] = (2, D)
    for name in ("language", "vision"):
        shapes.linear(f"multi_modal_{name}_proj", D, D)
        for number in range(size.fusion_depth):
            layer = f"multi_modal_{name}_layers.{number}"
            _add_bert_layer(shapes, D, layer, "attention", "crossattention")
        shapes.linear(f"multi_modal_{name}_pooler.dense", D, D)

    if head == "pairs":
        shapes.linear("mlm_head.transform.dense", D, D)
        shapes.norm("mlm_head.transform.LayerNorm", D)
        shapes["mlm_head.decoder.weight"] = (size.V, D)
        shapes["mlm_head.bias"] = (size.V,)
        _add_pixel_decoder(shapes, size)
    if head in ("pairs", "irtr"):
        shapes.linear("itm_head.fc", 2, 2 * D)
    if head == "irtr":
        shapes.linear("irtr_head", 1, 2 * D)
    if head in ("vqa", "cls"):
        shapes.linear(f"{head}_head.0", 2 * D, 2 * D)
        shapes.norm(f"{head}_head.1", 2 * D)
        shapes.linear(f"{head}_head.3", NUM_LABELS, 2 * D)
    return shapes


def _add_clip(shapes: Shapes, size: M3aeSize) -> None:
    D = size.D
    shapes["vision_encoder.positional_embedding"] = (77, size.clip_text)
    shapes["vision_encoder.token_embedding.weight"] = (100, size.clip_text)
    shapes.norm("vision_encoder.ln_final", size.clip_text)
    visual = "vision_encoder.visual"
    shapes[f"{visual}.class_embedding"] = (D,)
    shapes[f"{visual}.positional_embedding"] = (size.side**2 + 1, D)
    shapes[f"{visual}.conv1.weight"] = (D, 3, size.patch, size.patch)
    shapes.norm(f"{visual}.ln_pre", D)
    _add_clip_blocks(shapes, f"{visual}.transformer", size.image_depth, D)
    shapes.norm(f"{visual}.ln_post", D)


def _add_clip_blocks(
    shapes: Shapes,
    prefix: str,
    depth: int,
    width: int,
) -> None:
    for number in range(depth):
        block = f"{prefix}.resblocks.{number}"
        shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
        shapes.linear(f"{block}.attn.out_proj", width, width)
        shapes.linear(f"{block}.mlp.c_fc", 4 * width, width)
        shapes.linear(f"{block}.mlp.c_proj", width, 4 * width)
        shapes.norm(f"{block}.ln_1", width)
        shapes.norm(f"{block}.ln_2", width)


def _add_roberta(shapes: Shapes, size: M3aeSize) -> None:
    D = size.D
    embeddings = "language_encoder.embeddings"
    shapes[f"{embeddings}.position_ids"] = (1, size.positions)
    shapes[f"{embeddings}.word_embeddings.weight"] = (size.V, D)
    shapes[f"{embeddings}.position_embeddings.weight"] = (size.positions, D)
    shapes[f"{embeddings}.token_type_embeddings.weight"] = (1, D)
    shapes.norm(f"{embeddings}.LayerNorm", D)
    for number in range(size.text_depth):
        _add_bert_layer(shapes, D, f"language_encoder.encoder.layer.{number}", "attention")
    shapes.linear("language_encoder.pooler.dense", D, D)


def _add_bert_layer(shapes: Shapes, D: int, layer: str, *attentions: str) -> None:
    for attention in attentions:
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes.linear(f"{layer}.{attention}.{part}", D, D)
        shapes.norm(f"{layer}.{attention}.output.LayerNorm", D)
    shapes.linear(f"{layer}.intermediate.dense", 4 * D, D)
    shapes.linear(f"{layer}.output.dense", D, 4 * D)
    shapes.norm(f"{layer}.output.LayerNorm", D)


def _add_pixel_decoder(shapes: Shapes, size: M3aeSize) -> None:
    width = size.decoder
    shapes.linear("mim_head.decoder_embed", width, size.D)
    shapes["mim_head.mask_token"] = (1, 1, width)
    shapes["mim_head.decoder_pos_embed"] = (1, size.side**2 + 1, width)
    _add_clip_blocks(shapes, "mim_head.decoder", 4, width)
    shapes.norm("mim_head.decoder_norm", width)
    shapes.linear("mim_head.decoder_pred", 3 * size.patch**2, width)


def tiny_checkpoint(head: str) -> dict[str, Tensor]:
    """Return weights that are nowhere 0 or 1, and embeddings so small that the norm's eps
    counts."""
    torch.manual_seed(len(head))
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes_of(head, TINY).items():
        if len(shape) == 1 and name.endswith(".weight"):
            tensors[name] = 1 + 0.2 * torch.randn(shape)
        elif "conv1" in name or ("embedding" in name and not name.endswith("bias")):
            tensors[name] = 0.002 * torch.randn(shape)
        else:
            tensors[name] = 0.2 * torch.randn(shape)
    tensors["language_encoder.embeddings.position_ids"] = torch.arange(TINY.positions)[None]
    return tensors
