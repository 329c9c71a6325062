"""EVE's encoder: blocks, one path for training and evaluation, all initialisation.

`model.routing` reference and reference-dropless compute as the published code does, for weights trained with it
(docs/fidelity.md).

Letters: B batch, S rows of the batch, M rows that are read, N all tokens, D width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, InputConfig, ModelConfig
from eve_vl.config.model import NORM_EPS, FFNPolicy
from eve_vl.model import Backbone, Encoded
from eve_vl.model.embeddings import (
    ImageEmbed,
    TextEmbed,
    fitted_text_positions,
    index_tokens,
    join,
    resized_positions,
)
from eve_vl.model.layers import FEED_FORWARDS, Attention, drop_path, layer_norm
from eve_vl.model.moe import MoE, ReferenceMoE, upcycled
from eve_vl.model.packing import PackedTokens, ReadPositions, Tokens
from eve_vl.model.relative_positions import RelativePositions

TEMPERATURE = 0.07  # initial temperature of the contrastive loss


class Block(nn.Module):
    """Pre-norm attention and feed-forward part, with LayerScale and drop-path."""

    def __init__(
        self,
        config: EveModelConfig,
        policy: FFNPolicy,
        drop_path_rate: float = 0.0,
        sizes: InputConfig | None = None,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        self.policy: FFNPolicy = policy
        self.drop_path_rate = drop_path_rate
        self.norm1 = layer_norm(config.embed_dim, norm_eps)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.scale1 = nn.Parameter(torch.empty(config.embed_dim))
        self.scale2 = nn.Parameter(torch.empty(config.embed_dim))
        if policy in ("shared", "moe"):  # the others have a norm per network
            self.norm2 = layer_norm(config.embed_dim, norm_eps)
        self.ffn = build_ffn(policy, config, sizes)

    def forward(
        self,
        x_SD: Tensor,
        rows: PackedTokens,
        read: ReadPositions | None = None,
        bias_BHNN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rows after this block, and a `moe` block's statistics.

        All rows, (S, D), or those that are read, (M, D). The statistics cover all rows, unless a [CLS] is read in evaluation.
        bias_BHNN: of attention.
        """
        # a router needs all rows that count in the balance loss, so these must attend
        sees_all = (
            self.policy == "moe" and read is not None and (self.training or read.positions is None)
        )
        now, then = (None, read) if sees_all else (read, None)
        branch = self.attn.over_rows(self.norm1(x_SD), rows, now, bias_BHNN)
        x_SD, rows = rows.narrowed(x_SD, now)
        x_SD = x_SD + drop_path(self.scale1 * branch, rows, self.drop_path_rate, self.training)
        if self.policy == "moe":
            branch, stats = self.ffn(self.norm2(x_SD), rows, then)
        else:
            branch, stats = (
                self.ffn(self.norm2(x_SD)) if self.policy == "shared" else self.ffn(x_SD, rows),
                None,
            )
        x_SD, rows = rows.narrowed(x_SD, then)
        return x_SD + drop_path(
            self.scale2 * branch, rows, self.drop_path_rate, self.training
        ), stats


def build_ffn(policy: FFNPolicy, config: EveModelConfig, sizes: InputConfig | None) -> nn.Module:
    """Return the `ffn` of a block; only published routing needs input sizes."""
    if policy != "moe":
        return FEED_FORWARDS[policy](config.embed_dim, config.ffn_dim, config.activation)
    dims = (
        config.embed_dim,
        round(config.embed_dim * (config.expert_ratio or config.mlp_ratio)),
        config.num_experts,
    )
    how, activation = config.modality_routing, config.activation
    if config.routing == "dropless" or sizes is None:
        return MoE(*dims, config.top_k, how, activation)
    num_image, drops = 1 + sizes.num_patches, config.routing == "reference"
    return ReferenceMoE(
        *dims, modality_routing=how, activation=activation, num_image=num_image, drops=drops
    )


class Encoder(Backbone):
    """EVE: one Transformer for images, texts and pairs.

    With routing reference, a token's result depends on all tokens of its pass: parts of a batch run one by one, and no state
    may be left out.
    """

    def __init__(self, config: EveModelConfig, sizes: InputConfig, vocab_size: int):
        super().__init__()
        self.config: EveModelConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sizes = sizes
        self.balance_weight = config.balance_weight
        has_positions = config.positions == "learned"
        image = ImageEmbed(config.embed_dim, sizes, config.stem, has_positions=has_positions)
        how = {"has_positions": has_positions, "is_bert": config.text_embedding == "bert"}
        text = TextEmbed(config, sizes, vocab_size, config.text_norm_eps, **how)
        self.image: ImageEmbed = image  # pyright: ignore[reportIncompatibleMethodOverride]
        self.text: TextEmbed = text  # pyright: ignore[reportIncompatibleMethodOverride]
        self.norm_pre = layer_norm(config.embed_dim) if config.norm_pre else nn.Identity()
        rates = [
            config.drop_path * number / max(1, config.depth - 1) for number in range(config.depth)
        ]
        self.blocks = nn.ModuleList(
            Block(config, policy, rate, sizes)
            for policy, rate in zip(config.ffn_policies, rates, strict=True)
        )
        self.norm = layer_norm(config.embed_dim)
        self.relative = None if has_positions else RelativePositions(config, sizes)
        self.pooler = nn.Linear(config.embed_dim, config.embed_dim) if config.pooler else None
        with_pairs = [
            number for number, policy in enumerate(config.ffn_policies) if policy == "modality_vl"
        ]
        self.first_with_pairs = with_pairs[0] if with_pairs else config.depth
        self.num_contrasts = 1 + bool(with_pairs)
        # The last block computes only rows that are read. If they have one modality, the other's network gets no gradient.
        self.find_unused_parameters = (
            bool(with_pairs) or config.pooler or config.ffn_policies[-1] == "modality"
        )
        self.packs = config.routing == "dropless"  # the published code routes padding too
        # without drops, a token's result depends on no other token
        self.results_depend_on_batch = (
            config.routing == "reference" and "moe" in config.ffn_policies
        )
        self.computes_all = self.results_depend_on_batch

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images, texts or pairs, with reference routing by pass."""
        tokens = join(image, text)
        if num_passes > 1 and not self.packs:
            parts = [self.encode(*part) for part in _parts(image, text, num_passes)]
            return Encoded.of(
                tokens,
                torch.cat([part.x_BND for part in parts]),
                [part.routers[0] for part in parts],
            )
        rows = self.rows(tokens)
        x_SD, routers = self.run_blocks(tokens, rows)
        return Encoded.of(tokens, rows.grid(self.norm(x_SD)), [routers])

    def cls(
        self,
        image: Tokens | None,
        text: Tokens | None,
        *,
        num_passes: int = 1,
        final_norm: bool = True,
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the state of the text's [CLS], else of the image's, and the routers.

        (B, D), pooled for pairs.
        """
        if num_passes > 1 and not self.packs:
            parts = [
                self.cls(*part, final_norm=final_norm) for part in _parts(image, text, num_passes)
            ]
            return torch.cat([cls_BD for cls_BD, _ in parts]), [routers for _, (routers,) in parts]
        tokens = join(image, text)
        rows = self.rows(tokens)
        position = tokens.num_image if text is not None else 0
        x_BD, routers = self.run_blocks(tokens, rows, rows.between(position, position + 1))
        if not final_norm:
            return x_BD, [routers]
        x_BD = self.norm(x_BD)
        return x_BD if self.pooler is None or not rows.is_pair else self.pooler(x_BD).tanh(), [
            routers
        ]

    def for_contrast(
        self, image: Tokens | None, text: Tokens | None
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the [CLS] states (B, D) of an image or a text, and the routers.

        With networks for pairs there are two, for VLMo's two contrasts: by the modality's own networks, and by those of pairs.
        """
        if self.num_contrasts == 1:
            return super().for_contrast(image, text)
        tokens = join(image, text)
        rows = self.rows(tokens)
        blocks, read, first = self._with_biases(tokens), rows.between(0, 1), self.first_with_pairs
        x_SD, below = self._run(
            blocks[:first], self.norm_pre(rows.collect(tokens.x_BND)), rows, None
        )
        both = [
            self._run(blocks[first:], x_SD, each, read)
            for each in (rows, replace(rows, is_pair=True))
        ]
        return [self.norm(x_BD) for x_BD, _ in both], [below + routers for _, routers in both]

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and the routers."""
        tokens = join(image, text)
        rows = self.rows(tokens)
        x_MD, routers = self.run_blocks(tokens, rows, rows.of_texts(token_M))
        return self.norm(x_MD), [routers]

    def run_blocks(
        self, tokens: Tokens, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the states before the final norm, and statistics of `moe` blocks.

        States are of all rows, or of those that are read. The last block computes only rows that are read, but its router sees
        all that count in the balance loss.
        """
        return self._run(
            self._with_biases(tokens), self.norm_pre(rows.collect(tokens.x_BND)), rows, read
        )

    def _with_biases(self, tokens: Tokens) -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
        """Return the blocks, each with its attention bias, if any."""
        biases: Any = (
            [()] * len(self.blocks) if self.relative is None else zip(self.relative(tokens))
        )
        return list(zip(self.blocks, biases, strict=True))

    def _run(
        self,
        blocks: list[tuple[nn.Module, tuple[Tensor, ...]]],
        x_SD: Tensor,
        rows: PackedTokens,
        read: ReadPositions | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run blocks on rows; return the states, and the statistics of `moe` blocks."""
        routers = []
        for block, bias in blocks:
            reads_now = block is self.blocks[-1] and not self.computes_all
            x_SD, stats = block(x_SD, rows, read if reads_now else None, *bias)
            if stats is not None:
                routers.append(stats)
        return x_SD if read is None or not self.computes_all else x_SD.index_select(
            0, read.row_M
        ), routers

    def rows(self, tokens: Tokens) -> PackedTokens:
        """Return the tokens to compute."""
        return PackedTokens.of(tokens, self.config.num_heads, packs=self.packs)

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Resize another encoder's positions; relative ones of texts are only cut.

        Experts start from its networks of the modalities.
        """
        tensors, experts = self._upcycled(tensors)
        names, notes = ("relative.image_bias", "relative.text_bias"), list[str | None]()
        if self.relative is None:
            tensors, image = resized_positions(tensors, "image.positions", self.sizes.num_patches)
            tensors, text = fitted_text_positions(tensors, "text.positions", self.sizes.text_length)
            notes = [text, image]
        elif tensors.keys() >= {*names}:
            *parts, notes = self.relative.resized(*(tensors[name] for name in names))
            tensors |= dict(zip(names, parts, strict=True))
        return tensors, "; ".join(filter(None, (experts, *notes))) or None

    def _upcycled(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        tensors, notes = dict(tensors), []
        for number, block in enumerate(self.blocks):
            start = f"blocks.{number}.ffn."
            dense = {
                name.removeprefix(start): each
                for name, each in tensors.items()
                if name.startswith(start)
            }
            is_by_modality = "image.fc1.bias" in dense and "vl.fc1.bias" not in dense
            if type(block.ffn) is MoE and is_by_modality and (made := upcycled(block.ffn, dense)):
                tensors = {
                    name: each for name, each in tensors.items() if not name.startswith(start)
                }
                tensors |= {f"blocks.{number}.{name}": tensor for name, tensor in made.items()}
                notes.append(number)
        return (
            tensors,
            f"experts from the networks of blocks {', '.join(map(str, notes))}" if notes else None,
        )

    def image_attention(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of the attention modules, and the row of a [CLS].

        It is the text's of a pair, else the image's.
        """
        names = [f"blocks.{number}.attn" for number in range(len(self.blocks))]
        return names, 1 + self.sizes.num_patches if at_pair else 0


def _parts(image: Tokens | None, text: Tokens | None, count: int) -> list[list[Tokens | None]]:
    """Cut a batch into equal parts, in operations that ONNX has."""
    tokens = image or text
    assert tokens is not None
    rows_CB = torch.arange(tokens.x_BND.shape[0], device=tokens.x_BND.device).unflatten(
        0, (count, -1)
    )
    return [
        [None if each is None else index_tokens(each, rows_B) for each in (image, text)]
        for rows_B in rows_CB.unbind()
    ]


def initialize(module: nn.Module, config: ModelConfig) -> None:
    """Set the initial value of every weight.

    | what | value |
    |---|---|
    | linear layers, experts, router, embeddings, [CLS], mask token | normal, std `init_std`, cut at 2 std |
    | positions | normal, std `pos_embed_init_std`, cut at 2 std |
    | convolutions | normal, std √(2 / fan-in), as ReLU wants (He et al. 2015) |
    | biases (q and v too) | 0; VQA and classification then set the last bias of their heads |
    | normalisations | weight 1, bias 0 |
    | LayerScale | `layer_scale` |
    | temperature | 0.07 |

    The published code cuts at one standard deviation, which leaves an effective std of 0.011; we keep BEiT's usual cut.
    """
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            if name == "weight" and parameter.ndim == 1:  # of a normalisation
                nn.init.ones_(parameter)
            elif isinstance(submodule, nn.Conv2d) and name == "weight":
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif (
                isinstance(submodule, nn.ConvTranspose2d) and name == "weight"
            ):  # without overlap the fan-in is its channels
                nn.init.normal_(parameter, std=(2 / len(parameter)) ** 0.5)
            elif isinstance(submodule, Block) and name in ("scale1", "scale2"):
                nn.init.constant_(parameter, config.layer_scale_init)
            elif name == "temperature":
                nn.init.constant_(parameter, TEMPERATURE)
            elif "bias" in name:
                nn.init.zeros_(parameter)
            else:
                std = config.pos_embed_init_std if name == "positions" else config.init_std
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
