"""EVE's encoder: one Transformer for images, texts and pairs.

`model.routing` reference and reference-dropless compute as the published code does, for weights
trained with it (docs/fidelity.md).

Letters: B batch, S rows of the batch, M rows that are read, N all tokens, D width, H heads.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.model.backbone import Backbone, Encoded
from eve_vl.model.block import Block
from eve_vl.model.image_embedding import ImageEmbed
from eve_vl.model.norm import layer_norm
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.positions import fit_text_positions, resize_image_positions
from eve_vl.model.text_embedding import TextEmbed
from eve_vl.model.tokens import Tokens, index_tokens, join
from eve_vl.model.upcycling import upcycle_blocks


class Encoder(Backbone):
    """EVE: one Transformer for images, texts and pairs.

    With routing reference, a token's result depends on all tokens of its pass: parts of a batch run
    one by one, and no state may be left out.
    """

    def __init__(self, config: EveModelConfig, sizes: InputConfig, vocab_size: int):
        super().__init__()
        self.config: EveModelConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sizes = sizes
        self.balance_weight = config.balance_weight

        has_positions = self.adds_positions(config)
        self.image: ImageEmbed = ImageEmbed(  # pyright: ignore[reportIncompatibleMethodOverride]
            config.embed_dim, sizes, config.stem, has_positions=has_positions
        )
        self.text: TextEmbed = TextEmbed(  # pyright: ignore[reportIncompatibleMethodOverride]
            config.embed_dim,
            sizes,
            vocab_size,
            dropout=config.dropout,
            norm_eps=config.text_norm_eps,
            is_bert=config.text_embedding == "bert",
            has_positions=has_positions,
        )
        self.norm_pre = layer_norm(config.embed_dim) if config.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList()
        for number, policy in enumerate(config.ffn_policies):
            drop_path_rate = config.drop_path * number / max(1, config.depth - 1)
            self.blocks.append(Block(config, policy, drop_path_rate, sizes))
        self.norm = layer_norm(config.embed_dim)

        # The last block computes only rows that are read. If they have one modality, the other's
        # network gets no gradient.
        has_pair_networks = "modality_vl" in config.ffn_policies
        self.find_unused_parameters = has_pair_networks or config.ffn_policies[-1] == "modality"
        self.packs = config.routing == "dropless"  # the published code routes padding too
        # without drops, a token's result depends on no other token
        self.results_depend_on_batch = (
            config.routing == "reference" and "moe" in config.ffn_policies
        )
        self.computes_all = self.results_depend_on_batch

    def adds_positions(self, config: EveModelConfig) -> bool:
        """Return whether positions are vectors that are added to patches and words."""
        return True

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images, texts or pairs, with reference routing by pass."""
        tokens = join(image, text)
        if num_passes > 1 and not self.packs:
            parts = []
            for image_part, text_part in split_batch(image, text, num_passes):
                parts.append(self.encode(image_part, text_part))
            x_BND = torch.cat([part.x_BND for part in parts])
            return Encoded.of(tokens, x_BND, [part.routers[0] for part in parts])

        rows = self.rows(tokens)
        x_SD, stats = self.run_blocks(tokens, rows)
        return Encoded.of(tokens, rows.unpack(self.norm(x_SD)), [stats])

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
            states = []
            routers = []
            for image_part, text_part in split_batch(image, text, num_passes):
                cls_BD, part_routers = self.cls(image_part, text_part, final_norm=final_norm)
                states.append(cls_BD)
                routers += part_routers
            return torch.cat(states), routers

        tokens = join(image, text)
        rows = self.rows(tokens)
        position = 0 if text is None else tokens.num_image
        x_BD, stats = self.run_blocks(tokens, rows, rows.read_range(position, position + 1))
        if final_norm:
            x_BD = self.normed_cls(x_BD, is_pair=rows.is_pair)
        return x_BD, [stats]

    def normed_cls(self, x_BD: Tensor, *, is_pair: bool) -> Tensor:
        """Return the [CLS] states of images, texts or pairs as heads read them."""
        return self.norm(x_BD)

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and the routers."""
        tokens = join(image, text)
        rows = self.rows(tokens)
        x_MD, stats = self.run_blocks(tokens, rows, rows.read_texts(token_M))
        return self.norm(x_MD), [stats]

    def rows(self, tokens: Tokens) -> PackedTokens:
        """Return the tokens to compute."""
        return PackedTokens.of(tokens, self.config.num_heads, packs=self.packs)

    def run_blocks(
        self, tokens: Tokens, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the states before the final norm, and statistics of `moe` blocks.

        States are of all rows, or of those that are read. The last block computes only rows that
        are read, but its router sees all that count in the balance loss.
        """
        x_SD = self.norm_pre(rows.pack(tokens.x_BND))
        return self.run(self.blocks_with_biases(tokens), x_SD, rows, read)

    def blocks_with_biases(self, tokens: Tokens) -> list[tuple[nn.Module, Tensor | None]]:
        """Return the blocks, each with its attention bias (B or 1, H, N, N), if any."""
        return [(block, None) for block in self.blocks]

    def run(
        self,
        blocks: Iterable[tuple[nn.Module, Tensor | None]],
        x_SD: Tensor,
        rows: PackedTokens,
        read: ReadPositions | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run blocks on rows; return the states, and the statistics of `moe` blocks."""
        all_stats = []
        for block, bias_BHNN in blocks:
            is_last = block is self.blocks[-1]
            read_in_block = read if is_last and not self.computes_all else None
            x_SD, stats = block(x_SD, rows, read_in_block, bias_BHNN)
            if stats is not None:
                all_stats.append(stats)
        if read is not None and self.computes_all:
            x_SD = x_SD.index_select(0, read.row_M)
        return x_SD, all_stats

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Resize another encoder's positions; experts start from its networks of the modalities."""
        tensors, note = upcycle_blocks(tensors, self.blocks)
        tensors, position_notes = self.resized_positions(tensors)
        notes = [note, *position_notes]
        return tensors, "; ".join(note for note in notes if note) or None

    def resized_positions(
        self, tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[str | None]]:
        """Resize another encoder's positions. Returns all weights, and notes on changes."""
        tensors, image_note = resize_image_positions(
            tensors, "image.positions", self.sizes.num_patches
        )
        tensors, text_note = fit_text_positions(tensors, "text.positions", self.sizes.text_length)
        return tensors, [text_note, image_note]

    def image_attention(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of the attention modules, and the row of a [CLS].

        It is the text's of a pair, else the image's.
        """
        names = [f"blocks.{number}.attn" for number in range(len(self.blocks))]
        return names, 1 + self.sizes.num_patches if at_pair else 0


def split_batch(
    image: Tokens | None, text: Tokens | None, count: int
) -> list[tuple[Tokens | None, Tokens | None]]:
    """Cut a batch into equal parts, in operations that ONNX has."""
    tokens = image or text
    assert tokens is not None
    row_B = torch.arange(tokens.x_BND.shape[0], device=tokens.x_BND.device)
    parts = []
    for part_rows in row_B.unflatten(0, (count, -1)).unbind():
        image_part = None if image is None else index_tokens(image, part_rows)
        text_part = None if text is None else index_tokens(text, part_rows)
        parts.append((image_part, text_part))
    return parts
