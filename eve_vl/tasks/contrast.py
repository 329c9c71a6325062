"""Image–text contrast (ITC) and matching with hard negatives (ITM): how retrieval is fine-tuned and EVE's rivals pre-train.

Letters: B batch, N all tokens, D width, d width of features, C candidates over all processes.
"""

import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.model.embed import Tokens, pair
from eve_vl.model.encoder import Encoder
from eve_vl.model.heads import ContrastHead, MatchHead
from eve_vl.model.moe import RouterStats
from eve_vl.train.distributed import gather_rows

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


class Contrast(nn.Module):
    """The two heads, and the losses that join them with an encoder."""

    def __init__(self, embed_dim: int, projection_dim: int, *, with_match: bool, standardize_match: bool = False):
        super().__init__()
        self.features = ContrastHead(embed_dim, projection_dim or embed_dim)
        self.match_head = MatchHead(embed_dim, standardize=standardize_match) if with_match else None

    def forward(
        self, encoder: Encoder, image: Tokens, text: Tokens, picture_B: Tensor
    ) -> tuple[dict[str, Tensor], list[list[RouterStats]]]:
        """Return the losses `itc` and, with a matching head, `itm`, and the routers' statistics of each pass.

        image, text: embedded, B of each, row by row a true pair. picture_B: int64, equal for captions of one picture.
        """
        with torch.no_grad():
            self.features.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        encoded_image, encoded_text = encoder.encode(image), encoder.encode(text)
        image_Bd = self.features.image_features(encoded_image.x_BND[:, 0])
        text_Bd = self.features.text_features(encoded_text.x_BND[:, 0])
        image_Cd, text_Cd = gather_rows(image_Bd), gather_rows(text_Bd)
        is_match_BC = picture_B[:, None] == gather_rows(picture_B)
        temperature = self.features.temperature
        terms = {"itc": objectives.contrastive(image_Bd, text_Bd, image_Cd, text_Cd, is_match_BC, temperature)}
        routers = [encoded_image.router, encoded_text.router]
        if self.match_head is not None:
            with torch.no_grad():
                similarity_BB = image_Bd @ text_Bd.T / temperature
            itm_terms, itm_routers = self._matching(encoder, image, text, picture_B, similarity_BB)
            terms |= itm_terms
            routers += itm_routers
        return terms, routers

    def _matching(
        self, encoder: Encoder, image: Tokens, text: Tokens, picture_B: Tensor, similarity_BB: Tensor
    ) -> tuple[dict[str, Tensor], list[list[RouterStats]]]:
        """Match the B true pairs, B texts with a hard wrong picture and B pictures with a hard wrong text, in one pass."""
        is_match_BB = picture_B[:, None] == picture_B
        own_B = torch.arange(len(picture_B), device=picture_B.device)
        wrong_image_B = objectives.hard_negatives(similarity_BB.T, is_match_BB)
        wrong_text_B = objectives.hard_negatives(similarity_BB, is_match_BB)
        images, texts = torch.cat([own_B, wrong_image_B, own_B]), torch.cat([own_B, own_B, wrong_text_B])
        logits, routers = self.match(encoder, pick(image, images), pick(text, texts), num_parts=3)
        is_match = picture_B[images] == picture_B[texts]  # false for negatives, unless a batch shows one picture only
        accuracy = (logits.argmax(1) == is_match.long()).float().mean()
        return {"itm": objectives.matching(logits, is_match), "itm_acc": accuracy}, routers

    def match(
        self, encoder: Encoder, image: Tokens, text: Tokens, num_parts: int = 1
    ) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return logits (B, 2) of pairs, class 1 = match, read off the text [CLS], and the routers' statistics of each pass.

        num_parts: equal parts of the batch that the published code takes one after the other.
        """
        assert self.match_head is not None
        x_BND, routers = encoder.encode_parts(pair(image, text), num_parts)
        return self.match_head(x_BND[:, image.num_image]), routers

    def match_scores(self, encoder: Encoder, image: Tokens, text: Tokens) -> Tensor:
        """Return the logit of "match" (B,) of pairs, and compute nothing else."""
        assert self.match_head is not None
        encoded = encoder.encode(pair(image, text), only=image.num_image)
        return self.match_head(encoded.x_BND[:, 0])[:, 1]


def pick(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return some rows of a batch, perhaps more than once."""
    is_padding = None if tokens.is_padding_BN is None else tokens.is_padding_BN[rows]
    return Tokens(x_BND=tokens.x_BND[rows], num_image=tokens.num_image, is_padding_BN=is_padding)
