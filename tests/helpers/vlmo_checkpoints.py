"""Checkpoints of VLMo with the names and shapes that the code of microsoft/unilm gives them.

Letters: D width, V words.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.checkpoint_shapes import Shapes

MAX_WORDS = 40  # of a text
NUM_ANSWERS = 5


@dataclass(frozen=True)
class VlmoSize:
    """Sizes of a model; top: number of blocks with a network for pairs."""

    D: int
    depth: int
    heads: int
    top: int
    side: int
    patch: int = 16
    V: int = 30_522
    is_relative: bool = True


TINY = VlmoSize(
    D=32,
    depth=3,
    heads=2,
    top=1,
    side=2,
    patch=4,
    V=61,
)
PUBLISHED = {
    "base": VlmoSize(D=768, depth=12, heads=12, top=2, side=14),
    "base_plus": VlmoSize(
        D=544,
        depth=24,
        heads=16,
        top=3,
        side=14,
        is_relative=False,
    ),
    "large": VlmoSize(D=1024, depth=24, heads=16, top=3, side=24),
}


def shapes_of(head: str, size: VlmoSize) -> Shapes:
    """Return the names and shapes of a checkpoint.

    head: "pairs" or "texts" for a stage of pre-training, else the task of fine-tuning.
    """
    D = size.D
    shapes = Shapes()
    _add_embeddings(shapes, size)
    shapes["token_type_embeddings.weight"] = (3 if head == "nlvr2" else 2, D)
    for number in range(size.depth):
        networks = ["text", "imag"]
        if head != "texts" and number >= size.depth - size.top:
            networks.append("vl")
        _add_block(shapes, size, f"transformer.blocks.{number}", networks)
    shapes.norm("transformer.norm", D)
    shapes.linear("pooler.dense", D, D)

    if head in ("pairs", "texts"):
        shapes.linear("mlm_score.transform.dense", D, D)
        shapes.norm("mlm_score.transform.LayerNorm", D)
        shapes["mlm_score.decoder.weight"] = (size.V, D)
        shapes["mlm_score.bias"] = (size.V,)
    if head == "pairs":
        shapes.linear("itm_score.fc", 2, D)
        _add_contrast(shapes, D, "itc_vl", "logit_vl_scale")
    if head in ("pairs", "retrieval"):
        _add_contrast(shapes, D, "itc", "logit_scale")
    if head == "vqa":
        _add_classifier(shapes, "vqa_classifier", D, 2 * D, NUM_ANSWERS)
    if head == "nlvr2":
        _add_classifier(shapes, "nlvr2_classifier", 2 * D, 2 * D, 2)
    return shapes


def _add_embeddings(shapes: Shapes, size: VlmoSize) -> None:
    D = size.D
    shapes["transformer.cls_token"] = (1, 1, D)
    shapes["transformer.patch_embed.proj.weight"] = (D, 3, size.patch, size.patch)
    shapes["transformer.patch_embed.proj.bias"] = (D,)
    if size.is_relative:
        num_rows = (2 * size.side - 1) ** 2 + 3 + 2 * 196 + 2
        shapes["relative_position_bias_table"] = (num_rows, size.heads * size.depth)
        shapes["relative_position_index"] = (size.side**2 + 1, size.side**2 + 1)
        shapes["text_relative_position_index"] = (MAX_WORDS, MAX_WORDS)
    else:
        shapes["transformer.pos_embed"] = (1, size.side**2 + 1, D)
    shapes["text_embeddings.position_ids"] = (1, MAX_WORDS)
    shapes["text_embeddings.word_embeddings.weight"] = (size.V, D)
    shapes["text_embeddings.position_embeddings.weight"] = (MAX_WORDS, D)
    shapes["text_embeddings.token_type_embeddings.weight"] = (2, D)
    shapes.norm("text_embeddings.LayerNorm", D)


def _add_block(
    shapes: Shapes,
    size: VlmoSize,
    block: str,
    networks: list[str],
) -> None:
    D = size.D
    shapes.norm(f"{block}.norm1", D)
    shapes[f"{block}.attn.qkv.weight"] = (3 * D, D)
    shapes[f"{block}.attn.q_bias"] = (D,)
    shapes[f"{block}.attn.v_bias"] = (D,)
    shapes.linear(f"{block}.attn.proj", D, D)
    for network in networks:
        shapes.norm(f"{block}.norm2_{network}", D)
        shapes.linear(f"{block}.mlp_{network}.fc1", 4 * D, D)
        shapes.linear(f"{block}.mlp_{network}.fc2", D, 4 * D)
    if size.is_relative:
        shapes[f"{block}.gamma_1"] = (D,)
        shapes[f"{block}.gamma_2"] = (D,)


def _add_contrast(
    shapes: Shapes,
    D: int,
    prefix: str,
    scale: str,
) -> None:
    shapes[f"{prefix}_text_proj.fc.weight"] = (D, D)
    shapes[f"{prefix}_image_proj.fc.weight"] = (D, D)
    shapes[scale] = ()


def _add_classifier(
    shapes: Shapes,
    name: str,
    width: int,
    hidden: int,
    classes: int,
) -> None:
    shapes.linear(f"{name}.0", hidden, width)
    shapes.norm(f"{name}.1", hidden)
    shapes.linear(f"{name}.3", classes, hidden)


def tiny_checkpoint(head: str, size: VlmoSize = TINY) -> dict[str, Tensor]:
    """Return weights that are nowhere 0 or 1, and words so small that the norm's eps counts."""
    torch.manual_seed(len(head))
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes_of(head, size).items():
        if name.endswith(("_index", "_ids")):
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        is_embedding = name.startswith("text_embeddings") and len(shape) == 2
        tensors[name] = torch.randn(shape) * (0.002 if is_embedding else 0.2)
        if name.startswith("logit"):
            tensors[name] += math.log(1 / 0.07)
        elif "gamma" in name or (len(shape) == 1 and name.endswith("weight")):
            tensors[name] += 1
    return tensors
