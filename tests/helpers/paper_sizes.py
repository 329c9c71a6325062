"""Numbers of parameters computed by hand from the shapes of the published models.

Letters: D width, F hidden width of the networks, T text length, V vocabulary.
"""

from dataclasses import dataclass
from itertools import pairwise

from eve_vl.run.flops import NUM_LABELS


@dataclass(frozen=True)
class EncoderShape:
    """Shape of EVE's encoder, or of MLIM's, which has one network for all tokens."""

    depth: int
    D: int
    F: int
    image: int
    patch: int
    T: int
    V: int
    soft_blocks: int = 0
    experts: int = 0
    expert_width: int = 0  # 0: F
    stem: tuple[int, ...] = ()  # channels of convolutions 3 × 3
    residual_stem: bool = False  # two convolutions 3 × 3 after each but the first
    reductions: tuple[int, ...] = ()  # channels of convolutions 2 × 2, MLIM's
    is_shared: bool = False


@dataclass(frozen=True)
class VlmoShape:
    """Shape of VLMo: the top blocks have three networks, the others two."""

    depth: int
    D: int
    top_blocks: int
    heads: int  # 0: positions are learned, not biases of each head
    image: int = 224
    patch: int = 16
    V: int = 30_522
    stem: tuple[int, ...] = ()


@dataclass(frozen=True)
class TowersShape:
    """Shape of two towers, and of the co-attention that joins them."""

    D: int
    F: int
    image_depth: int
    text_depth: int
    fusion_depth: int
    image: int
    patch: int
    T: int
    V: int


@dataclass(frozen=True)
class DecoderShape:
    """Shape of the decoder of pixels."""

    D: int
    F: int
    depth: int


BASE = EncoderShape(
    depth=12, D=768, F=3072, image=224, patch=16, T=40, V=64_000, soft_blocks=2, experts=32
)
LARGE = EncoderShape(
    depth=24, D=1024, F=4096, image=224, patch=16, T=40, V=64_000, soft_blocks=3, experts=32
)
TINY = EncoderShape(
    depth=3,
    D=48,
    F=192,
    image=32,
    patch=8,
    T=32,
    V=400,
    soft_blocks=2,
    experts=4,
)
DEMO_STEM = (3, 24, 48, 96, 192)


def linear(in_dim: int, out_dim: int) -> int:
    """Return the parameters of a linear layer with a bias."""
    return in_dim * out_dim + out_dim


def network(D: int, F: int) -> int:
    """Return the parameters of a network of two layers."""
    return linear(D, F) + linear(F, D)


def attention(D: int) -> int:
    """Return the parameters of attention without a bias on k."""
    return 3 * D * D + 2 * D + linear(D, D)


def convolution_stem(channels: tuple[int, ...], D: int, *, is_residual: bool = False) -> int:
    """Return the parameters of convolutions 3 × 3, each with a norm, and of a projection."""
    total = linear(D, D)
    for before, after in pairwise(channels):
        total += 9 * before * after + 2 * after
    if is_residual:
        for width in channels[2:]:
            total += 2 * (9 * width * width + 2 * width)
    return total


def encoder_parameters(shape: EncoderShape) -> int:
    """Return the parameters of the encoder: §3 of the paper, hard router below, soft above."""
    D = shape.D
    norm = 2 * D
    layer_scales = 2 * D
    num_patches = (shape.image // shape.patch) ** 2
    if shape.reductions:
        patch_embed = 0
        for before, after in pairwise(shape.reductions):
            patch_embed += 4 * before * after + after
    elif shape.stem:
        patch_embed = convolution_stem(shape.stem, D, is_residual=shape.residual_stem)
    else:
        patch_embed = linear(3 * shape.patch**2, D)
    image_embed = patch_embed + D + (1 + num_patches) * D + D
    text_embed = shape.V * D + norm + shape.T * D + D

    num_networks = 1 if shape.is_shared else 2
    hard_block = norm + attention(D) + layer_scales + num_networks * (norm + network(D, shape.F))
    router = shape.experts * D + 2 * D
    expert = network(D, shape.expert_width or shape.F)
    soft_block = norm + attention(D) + layer_scales + norm + router + shape.experts * expert
    hard_blocks = (shape.depth - shape.soft_blocks) * hard_block
    return image_embed + text_embed + norm + hard_blocks + shape.soft_blocks * soft_block + norm


def vlmo_parameters(shape: VlmoShape, text_length: int) -> int:
    """Return the parameters of VLMo's encoder and pooler, with one table of biases for all
    blocks, or learned positions where `heads` is 0."""
    D = shape.D
    norm = 2 * D
    side = shape.image // shape.patch
    if shape.stem:
        patch_embed = convolution_stem(shape.stem, D)
    else:
        patch_embed = linear(3 * shape.patch**2, D)
    embed = patch_embed + shape.V * D + norm + 3 * D  # one [CLS], two types
    ffn = norm + network(D, 4 * D)
    blocks = shape.depth * (norm + attention(D) + 2 * D + 2 * ffn) + shape.top_blocks * ffn
    if shape.heads:
        num_distances = (2 * side - 1) ** 2 + 5 + 2 * text_length
        positions = shape.depth * shape.heads * num_distances
    else:
        positions = (1 + side**2 + text_length) * D
    return embed + blocks + positions + norm + linear(D, D)


def tower_parameters(shape: TowersShape) -> int:
    """Return the parameters of two towers and of their co-attention.

    Co-attention has a projection and a pooler of each side. Each of its blocks has, for each side,
    attention to itself and to the other side, a network, and a norm after each of the three.
    """
    D = shape.D
    norm = 2 * D
    num_patches = (shape.image // shape.patch) ** 2
    image_embed = linear(3 * shape.patch**2, D) + D + (1 + num_patches) * D + D + norm
    text_embed = shape.V * D + norm + shape.T * D + D
    block = norm + attention(D) + 2 * D + norm + network(D, shape.F)
    towers = (shape.image_depth + shape.text_depth) * block + 2 * norm
    if shape.fusion_depth == 0:
        return image_embed + text_embed + towers
    side = 2 * attention(D) + network(D, shape.F) + 3 * norm
    return image_embed + text_embed + towers + 4 * linear(D, D) + shape.fusion_depth * 2 * side


def pretraining_head_parameters(
    losses: tuple[str, ...], shape: EncoderShape | VlmoShape | TowersShape, decoder: DecoderShape
) -> int:
    """Return the parameters of the heads of pre-training."""
    D = shape.D
    d = decoder.D
    block = 2 * d + attention(d) + 2 * d + 2 * d + network(d, decoder.F)
    counts = {
        "mlm": linear(D, D) + 2 * D + linear(D, shape.V),
        "mim": linear(D, d) + d + decoder.depth * block + 2 * d + linear(d, 3 * shape.patch**2),
        "itc": 2 * D * D + 1,
        "itm": linear(D, 2),
    }
    return sum(counts[loss] for loss in losses)


def two_layer_head(in_dim: int, hidden_dim: int, out_dim: int) -> int:
    """Return the parameters of a head with a norm between its two layers."""
    return linear(in_dim, hidden_dim) + 2 * hidden_dim + linear(hidden_dim, out_dim)


def head_parameters(head: str, D: int) -> int:
    """Return the parameters of a downstream task's head."""
    if head == "labels":
        return two_layer_head(D, 2 * D, NUM_LABELS)
    if head == "concatenated":  # NLVR2, the states of both images side by side
        return two_layer_head(4 * D, 2 * D, 2)
    if head == "paired":  # NLVR2, attention between both images
        full_attention = 3 * linear(D, D) + linear(D, D)
        return 2 * full_attention + linear(2 * D, D) + linear(D, 1) + linear(2 * D, 2)
    if head == "vlmo_nlvr2":  # and the type of the right image
        return two_layer_head(2 * D, 2 * D, 2) + D
    contrast = 2 * D * D + 1
    if head == "contrast":
        return contrast
    assert head == "retrieval", head
    return contrast + linear(D, 2)
