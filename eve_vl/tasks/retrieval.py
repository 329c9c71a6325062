"""Image–text retrieval: trained by contrast and matching; searches by features and re-ranks the best by the matching head.

Letters: B batch, I pictures, T captions, P pairs, K best candidates of a query, D width, d width of features, L text tokens.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from eve_vl.config import Config, RetrievalConfig
from eve_vl.data.batch import CaptionBatch, SearchBatch, normalize
from eve_vl.data.downstream import CaptionedPictures
from eve_vl.metrics import retrieval as metrics
from eve_vl.model.embed import Tokens, patchify
from eve_vl.model.encoder import Encoder, initialize
from eve_vl.tasks.contrast import Contrast
from eve_vl.tasks.routing import routing_terms
from eve_vl.train.distributed import gather_objects, rank
from eve_vl.train.trainer import StepOutput

PAIRS_AT_ONCE = 256
NUM_FOLD_IMAGES = 5000  # as many pictures as the five folds of the COCO 1K protocol need


@dataclass(kw_only=True, slots=True)
class Index:
    """Everything to search among, in order of index, of all processes."""

    image_Id: Tensor
    caption_Td: Tensor
    text_T: Tensor
    """int64: which of the distinct texts each caption is; captions in the same words have the same features and scores."""
    ids: list[Tensor]
    """Token ids of each distinct text, int64 (L,), on the CPU; with model.padded_text_length its padding too."""
    lengths: list[int]
    """Tokens of each distinct text without padding."""
    owner_I: Tensor
    """Process that holds the pixels of each picture."""
    pixels: dict[int, Tensor]
    """uint8 pictures that this process holds."""
    relevance: metrics.Relevance

    def part(self, images: Tensor, captions: Tensor, relevance: metrics.Relevance) -> "Index":
        """Return some pictures and captions, renumbered from 0."""
        return Index(
            image_Id=self.image_Id[images.to(self.image_Id.device)],
            caption_Td=self.caption_Td[captions.to(self.caption_Td.device)],
            text_T=self.text_T[captions],
            ids=self.ids,
            lengths=self.lengths,
            owner_I=self.owner_I[images],
            pixels={new: self.pixels[old] for new, old in enumerate(images.tolist()) if old in self.pixels},
            relevance=relevance,
        )


class Retrieval(nn.Module):
    """The task: encoder, feature and matching heads."""

    dataset = CaptionedPictures
    main_metric = "r_mean"

    def __init__(self, config: Config, *, vocab_size: int):
        super().__init__()
        assert isinstance(config.task, RetrievalConfig)
        self.config, self.settings = config, config.task
        self.encoder = Encoder(config.model, vocab_size)
        self.contrast = Contrast(
            config.model.embed_dim,
            self.settings.projection_dim,
            with_match=self.settings.itm_weight > 0,
            standardize_match=self.settings.standardize_match,
        )
        initialize(self, config.model)

    def forward(self, batch: CaptionBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.itc_weight, task.itm_weight, model.balance_weight)."""
        task = self.settings
        image = self.embed_images(batch.images_BCHW)
        text = self.encoder.text(batch.ids_BT, batch.is_padding_BT)
        terms, routers = self.contrast(self.encoder, image, text, batch.picture_B)
        terms |= routing_terms(routers)
        loss = task.itc_weight * terms["itc"]
        if task.itm_weight:
            loss = loss + task.itm_weight * terms["itm"]
        if "balance" in terms:
            loss = loss + self.config.model.balance_weight * terms["balance"]
        return StepOutput(loss=loss, terms=terms)

    def embed_images(self, images_BCHW: Tensor) -> Tokens:
        """Embed uint8 pictures."""
        return self.encoder.image(patchify(normalize(images_BCHW), self.config.input.patch_size))

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Return features of length 1, float32 (B, d), of uint8 pictures."""
        return self.contrast.features.image_features(self._cls(self.embed_images(images_BCHW)))

    def text_features(self, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """Return features of length 1, float32 (B, d), of token ids."""
        return self.contrast.features.text_features(self._cls(self.encoder.text(ids_BT, is_padding_BT)))

    def _cls(self, tokens: Tokens) -> Tensor:
        return self.encoder.encode(tokens, only=0, final_norm=self.settings.final_norm).x_BND[:, 0]

    @torch.no_grad()
    def evaluate(self, loader: Iterable[SearchBatch], rerank: int | None = None) -> dict[str, float]:
        """Return the numbers of `metrics.retrieval` over all processes: tr1 … rsum after re-ranking (of the contrast alone
        if task.rerank is 0), `…_itc_only` beside them, `…_1k` the mean of five folds where there are 5,000 pictures.

        Also the number of pictures and captions, and how many matches each has on average. rerank: instead of
        task.rerank.
        """
        index = self.index(loader)
        rel, k = index.relevance, self.settings.rerank if rerank is None else rerank
        found = self.numbers(index, k)
        if len(index.image_Id) >= NUM_FOLD_IMAGES:
            folds = metrics.folds_1k(rel, lambda images, texts, fold: self.numbers(index.part(images, texts, fold), k))
            found |= {f"{name}_1k": value for name, value in folds.items() if not name.startswith("num")}
        num_pairs = len(rel.texts_of_image.candidate_M)
        return found | {
            "num_images": len(index.image_Id),
            "num_texts": len(index.caption_Td),
            "texts_per_image": num_pairs / len(index.image_Id),
            "images_per_text": num_pairs / len(index.caption_Td),
        }

    def numbers(self, index: Index, k: int) -> dict[str, float]:
        """Return tr1 … rsum after the k best are re-ranked and `…_itc_only`; of the contrast alone, no suffix, if k is 0."""
        rel = index.relevance
        found = metrics.summary(
            metrics.best_ranks(index.image_Id, index.caption_Td, rel.texts_of_image),
            metrics.best_ranks(index.caption_Td, index.image_Id, rel.images_of_text),
        )
        if not k:
            return found
        itc_only = {f"{name}_itc_only": value for name, value in found.items() if not name.startswith("num")}
        return metrics.summary(*self.rerank(index, k)) | itc_only

    def index(self, loader: Iterable[SearchBatch]) -> Index:
        """Compute each picture's and each text's features once, and gather them from all processes."""
        images: dict[int, tuple[Tensor, tuple[int, ...], int]] = {}
        texts: dict[int, tuple[Tensor, tuple[int, ...], Tensor, int]] = {}
        pixels: dict[int, Tensor] = {}
        for batch in loader:
            if batch.has_pictures:
                features = self.image_features(batch.images_BCHW).cpu()
                for row, index in enumerate(batch.index_B.tolist()):
                    images[index] = features[row].clone(), batch.captions[row], rank()  # a view would bring its whole batch
                    pixels[index] = batch.images_BCHW[row]
            else:
                features = self.text_features(batch.ids_BT, batch.is_padding_BT).cpu()
                ids, is_padding = batch.ids_BT.cpu(), batch.is_padding_BT.cpu()
                for row, index in enumerate(batch.index_B.tolist()):
                    length = int((~is_padding[row]).sum())
                    kept = ids[row, : self.config.input.padded_text_length or length].clone()
                    texts[index] = features[row].clone(), batch.captions[row], kept, length
        all_images = [found for _, found in sorted(itertools.chain(*(part.items() for part in gather_objects(images))))]
        all_texts = [found for _, found in sorted(itertools.chain(*(part.items() for part in gather_objects(texts))))]
        text_of = {caption: text for text, (_, captions, _, _) in enumerate(all_texts) for caption in captions}
        text_T = torch.tensor([text_of[caption] for caption in range(len(text_of))])
        matches = [(image, caption) for image, (_, captions, _) in enumerate(all_images) for caption in captions]
        device = self.contrast.features.temperature.device
        return Index(
            image_Id=torch.stack([features for features, _, _ in all_images]).to(device),
            caption_Td=torch.stack([features for features, *_ in all_texts])[text_T].to(device),
            text_T=text_T,
            ids=[ids for _, _, ids, _ in all_texts],
            lengths=[length for *_, length in all_texts],
            owner_I=torch.tensor([owner for _, _, owner in all_images]),
            pixels=pixels,
            relevance=metrics.Relevance.from_pairs(
                [image for image, _ in matches], [caption for _, caption in matches], len(all_images), len(text_T)
            ),
        )

    def rerank(self, index: Index, k: int) -> tuple[Tensor, Tensor]:
        """Return the ranks of pictures' captions (I,) and of captions' pictures (T,) after the k best candidates of each query
        are put in order by the matching head."""
        captions_IK = metrics.rank_from_features(index.image_Id, index.caption_Td, k).cpu()
        images_TK = metrics.rank_from_features(index.caption_Td, index.image_Id, k).cpu()
        scores_IK, scores_TK = self.rerank_scores(index, captions_IK, images_TK)
        rel = index.relevance
        return (
            metrics.reranked_ranks(captions_IK, scores_IK, rel.texts_of_image),
            metrics.reranked_ranks(images_TK, scores_TK, rel.images_of_text),
        )

    def rerank_scores(self, index: Index, captions_IK: Tensor, images_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matching head's logits of each picture's captions (I, K) and of each caption's pictures (T, K).

        A pair of picture and text is scored once, however often it is among the best; each process scores the pairs of its
        own pictures.
        """
        num_texts = len(index.ids)
        pairs_IK = torch.arange(len(captions_IK))[:, None] * num_texts + index.text_T[captions_IK]
        pairs_TK = images_TK * num_texts + index.text_T[:, None]
        pair_P = torch.cat([pairs_IK.flatten(), pairs_TK.flatten()]).unique()
        own_P = pair_P[index.owner_I[pair_P // num_texts] == rank()]
        parts = gather_objects((own_P, self.match_scores(index, own_P // num_texts, own_P % num_texts)))
        all_P, order_P = torch.cat([pairs for pairs, _ in parts]).sort()
        score_P = torch.cat([scores for _, scores in parts])[order_P]
        return score_P[torch.searchsorted(all_P, pairs_IK)], score_P[torch.searchsorted(all_P, pairs_TK)]

    def match_scores(self, index: Index, image_P: Tensor, text_P: Tensor) -> Tensor:
        """Return the matching head's logit of each pair, float32 (P,) on the CPU; pairs of equally long texts go together."""
        device = index.image_Id.device
        length_P = torch.tensor(index.lengths)[text_P]
        score_P = torch.empty(len(image_P))
        for chosen in length_P.argsort(stable=True).split(PAIRS_AT_ONCE) if len(image_P) else ():  # it would give one chunk
            pixels = torch.stack([index.pixels[image] for image in image_P[chosen].tolist()])
            ids = [index.ids[text] for text in text_P[chosen].tolist()]
            ids_BL = pad_sequence(ids, batch_first=True)
            is_padding_BL = torch.arange(ids_BL.shape[1]) >= length_P[chosen, None]
            padding = is_padding_BL.to(device) if is_padding_BL.any() else None
            text = self.encoder.text(ids_BL.to(device), padding)
            score_P[chosen] = self.contrast.match_scores(self.encoder, self.embed_images(pixels), text).float().cpu()
        return score_P
