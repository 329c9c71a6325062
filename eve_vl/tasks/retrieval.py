"""Image–text retrieval: trained by contrast and matching; searches by features and re-ranks the best by the matching head, or,
without contrast, scores every pair by it.

Letters: B batch, I pictures, T captions, N distinct texts, P pairs, K best candidates of a query, D width, d width of features,
L text tokens.
"""

from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eve_vl.config import Config, RetrievalConfig, generated
from eve_vl.data.batch import CaptionBatch, SearchBatch, SearchPictures, SearchTexts, normalize
from eve_vl.data.dataset import hash_of
from eve_vl.data.downstream import CaptionedPictures, SearchSet
from eve_vl.data.records import Source
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.errors import SharedError, UserError
from eve_vl.metrics import certainty
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.certainty import GROUP
from eve_vl.model.encoder import initialize
from eve_vl.talk import counted, say, told
from eve_vl.tasks.contrast import Contrast, ContrastCalls, ContrastTask
from eve_vl.tasks.task import Evaluated, PublishedHead, Sizes
from eve_vl.tasks.verdict import Against
from eve_vl.train.distributed import gather_objects, rank
from eve_vl.train.trainer import StepOutput

PAIRS_AT_ONCE = 256
ONE_SIDE_AT_ONCE = 16  # pictures, and texts, of which each is matched with each
GALLERY = 2000  # rows at most that are searched among by a fusion pass for every pair, as in M3AE
MANY_PAIRS = 100_000  # so many take minutes on a small machine
TRIED = "r_mean_k"
NUM_FOLD_IMAGES = 5000  # as many pictures as the five folds of the COCO 1K protocol need
PUBLISHED = {
    "contrast.features.temperature": "itc_temp",
    "contrast.features.image.weight": "itc_vision_proj_head.weight",
    "contrast.features.text.weight": "itc_text_proj_head.weight",
    "contrast.match_head.weight": "itm_head.weight",
    "contrast.match_head.bias": "itm_head.bias",
}
"""Published names of the heads."""
OLDER_NAMES = {f"m{name}": name for name in PUBLISHED.values()} | {
    f"itc_vl_{kind}_proj_head.weight": f"itc_{kind}_proj_head.weight" for kind in ("vision", "text")
}
"""Of the same heads in pre-training; the published code lets the later ones of these prevail."""


def _is_published(task: RetrievalConfig) -> bool:
    """Whether these heads are those of the published models."""
    has_both = bool(task.itc_weight and task.itm_weight)
    return has_both and task.itm_loss == "pairs" and not task.standardize_match and task.pooling == "cls"


def _published_settings(tensors: Mapping[str, Tensor], width: int) -> RetrievalConfig | None:
    """Return the section of a checkpoint with a matching head."""
    projection_dim = len(tensors.get("itc_vision_proj_head.weight", ()))
    return RetrievalConfig(final_norm=False, projection_dim=projection_dim) if "itm_head.weight" in tensors else None


@dataclass(kw_only=True, slots=True)
class Index:
    """Everything to search among, in order of index, of all processes.

    Searches compare by the products of image_Id and text_Nd: of features that compare, and without contrast of each picture's
    match logits with all texts (d = N) and unit vectors, so that these are the products.
    """

    image_Id: Tensor
    text_Nd: Tensor
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
    names: list[str] = field(default_factory=list)
    """Of the row of each picture."""
    labels: list[tuple[str, ...]] = field(default_factory=list)
    """Classes of each picture."""
    hard: list[tuple[int, ...]] = field(default_factory=list)
    """Of each picture that comes with false captions: its own text and theirs."""
    kept: list[int] = field(default_factory=list)
    """Number of each caption in the set: those that are true of no picture that could be used are left out."""
    num_left_out: int = 0
    """How many these are."""

    @property
    def caption_Td(self) -> Tensor:
        """Features of each caption."""
        return self.text_Nd[self.text_T.to(self.text_Nd.device)]

    def part(self, images: Tensor, captions: Tensor, relevance: metrics.Relevance) -> "Index":
        """Return some pictures and captions, renumbered from 0."""
        return replace(
            self,
            image_Id=self.image_Id[images.to(self.image_Id.device)],
            text_T=self.text_T[captions],
            owner_I=self.owner_I[images],
            pixels={new: self.pixels[old] for new, old in enumerate(images.tolist()) if old in self.pixels},
            relevance=relevance,
        )


class Retrieval(ContrastTask[RetrievalConfig]):
    """The task: encoder, feature and matching heads."""

    section = RetrievalConfig
    dataset = CaptionedPictures
    calls = ContrastCalls
    main_metric, scored = "r_mean", "tr1 and ir1"
    against = (
        Against("tr1", "picture", "tr1_chance", "chance"),
        Against("ir1", "caption", "ir1_chance", "chance"),
        Against("tr1_hard", "picture", "tr1_hard_chance", "chance among false texts that differ in one place"),
        Against("precision_tr1", "picture", "precision_tr_chance", "chance by class"),
    )
    published_head = PublishedHead(
        keys=lambda task: PUBLISHED if _is_published(task) else None,
        settings=_published_settings,
        older_names=OLDER_NAMES,
    )

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.contrast = Contrast(self.encoder, self.settings)
        self.is_comparable = self.contrast.num_contrasts > 0
        initialize(self, config.model)

    def kept_of(self, tensors: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights of another run that are of use to this one; scores that rank start as its match logit."""
        kept = super().kept_of(tensors, labels)
        for name in ("contrast.match_head.weight", "contrast.match_head.bias") if self.contrast.num_ranked else ():
            if name in kept:
                kept[name] = kept[name][-1:]
        return kept

    def forward(self, batch: CaptionBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.itc_weight, task.itm_weight, the model's balance weight)."""
        losses, terms, routers = self.contrast(self.encoder, batch)
        return self.output(losses, routers, **terms)

    @classmethod
    def eval_dataset(cls, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer) -> SearchSet:
        """Return the pictures and texts to search among; of at most GALLERY rows where every pair takes a fusion pass."""
        if not cast(RetrievalConfig, config.task).itc_weight:
            config = replace(config, data=replace(config.data, val_samples=min(config.data.val_samples, GALLERY)))
        return SearchSet(sources, config, tokenizer)

    def check_flags(self, flags: Mapping[str, Any], dataset: SearchSet) -> None:
        """Raise UserError if more candidates are to be re-ranked than a query has."""
        rerank = flags.get("rerank", 0)
        if rerank > dataset.num_candidates:
            raise UserError(f"--rerank {rerank}: a query has only {dataset.num_candidates} candidates; give at most that many")

    def evaluate(self, loader: Iterable[SearchPictures | SearchTexts]) -> dict[str, float]:
        """Return the numbers of validation, with as many candidates re-ranked as it shows to be worth it: see `search`."""
        return self._evaluated(loader, chooses=True).numbers

    def evaluated(self, loader: Iterable[SearchPictures | SearchTexts]) -> Evaluated:
        """Return the numbers of `metrics.retrieval` over all processes: tr1 … rsum after re-ranking task.rerank candidates and,
        with a matching head, `…_itc_only` beside them; `…_1k` the mean of five folds where there are 5,000 pictures.

        Also the number of pictures and captions, how many matches each has on average, and tr1 and ir1 of random order.
        """
        return self._evaluated(loader, chooses=False)

    @torch.no_grad()
    def _evaluated(self, loader: Iterable[SearchPictures | SearchTexts], *, chooses: bool) -> Evaluated:
        index = self.index(loader)
        numbers, ranks = self.search(index, self.settings.rerank, chooses=chooses)
        rel, k = index.relevance, int(numbers.get("rerank_k", 0))
        if len(index.image_Id) >= NUM_FOLD_IMAGES:
            folds = metrics.folds_1k(rel, lambda images, texts, fold: self.search(index.part(images, texts, fold), k)[0])
            numbers |= {f"{name}_1k": value for name, value in folds.items() if not name.startswith(("num", "rerank"))}
        num_pairs = len(rel.texts_of_image.candidate_M)
        counts = {
            "num_images": len(index.image_Id),
            "num_texts": len(index.text_T),
            "texts_per_image": num_pairs / len(index.image_Id),
            "images_per_text": num_pairs / len(index.text_T),
            "tr1_chance": num_pairs / len(index.text_T) / int(rel.texts_of_image.has_any_Q.sum()),
            "ir1_chance": num_pairs / len(index.image_Id) / int(rel.images_of_text.has_any_Q.sum()),
        } | ({"num_captions_skipped": index.num_left_out} if index.num_left_out else {})
        numbers |= counts | self.merged(index) | self.precisions(index) | self.hard(index, k)
        return Evaluated(numbers=numbers, row_scores=first_hits(index.names, rel, *ranks))

    def merged(self, index: Index) -> dict[str, float]:
        """Return recalls by contrast alone, or by matching alone, if captions in the same words are one, true of every picture
        that has it, as `…_merged`; empty if no two are in the same words."""
        texts, text_T = index.text_T.unique(return_inverse=True)
        if len(texts) == len(text_T):
            return {}
        image_P, caption_P = index.relevance.texts_of_image.rows(0, len(index.image_Id))
        rel = metrics.Relevance.from_pairs(image_P, text_T[caption_P], len(index.image_Id), len(texts))
        text_Nd = index.text_Nd[texts.to(index.text_Nd.device)]
        ranks_I = metrics.best_ranks(index.image_Id, text_Nd, rel.texts_of_image)
        ranks_T = metrics.best_ranks(text_Nd, index.image_Id, rel.images_of_text)
        found = metrics.summary(ranks_I, ranks_T, rel.image_T)
        return {f"{name}_merged": value for name, value in found.items() if not name.startswith(("num", "rsum"))}

    def precisions(self, index: Index) -> dict[str, float]:
        """Return the share of the first hits by contrast alone, or by matching alone, that have a class of the query,
        precision_tr1 … precision_ir10, beside that of random order; empty if pictures have no classes. No recall: a hit need
        not be the query's own."""
        column = {name: number for number, name in enumerate(sorted({name for given in index.labels for name in given}))}
        label_IL = torch.zeros(len(index.labels), len(column), dtype=torch.bool)
        for image, given in enumerate(index.labels):
            label_IL[image, [column[name] for name in given]] = True
        numbers: dict[str, float] = {}
        if not column:
            return numbers
        image_P, caption_P = index.relevance.texts_of_image.rows(0, len(index.image_Id))
        label_TL = torch.zeros(len(index.text_T), len(column)).index_add(0, caption_P, label_IL[image_P].float()) > 0
        images, captions = (index.image_Id, label_IL), (index.caption_Td, label_TL)
        for way, (query_QD, query_QL), (other_CD, other_CL) in (("tr", images, captions), ("ir", captions, images)):
            found_QK, chance_Q = metrics.precisions(query_QD, other_CD, query_QL, other_CL)
            asked_Q, groups = query_QL.any(1), torch.arange(len(query_QD)) if way == "tr" else index.relevance.image_T
            for k, found_Q in zip(metrics.PRECISIONS, found_QK[asked_Q].T.numpy(), strict=True):
                found = certainty.mean(found_Q, groups[asked_Q].tolist(), is_share=True)
                gain_Q = (found_Q - chance_Q[asked_Q].numpy()) / len(found_Q)
                chance = f"precision_{way}_chance"
                numbers[f"precision_{way}{k}"] = certainty.over(found, chance, gain_Q, groups[asked_Q].tolist())
            numbers[f"precision_{way}_chance"] = float(chance_Q[asked_Q].mean())
        return numbers

    def hard(self, index: Index, num_reranked: int) -> dict[str, float]:
        """Return how often a picture's own text is the first among it and false ones that are hard to tell from it, tr1_hard,
        by what a search orders by; empty if there are none."""
        same: dict[tuple[int, ...], int] = {}  # texts that are cut to the same tokens tie, whatever their rounding
        first = [same.setdefault(tuple(ids.tolist()), text) for text, ids in enumerate(index.ids)]
        pair_P = torch.tensor([(image, first[text]) for image, texts in enumerate(index.hard) for text in texts]).view(-1, 2)
        if not len(pair_P):
            return {}
        if num_reranked or not self.is_comparable:
            (score_P,) = self.pair_scores_of(index, pair_P[:, 0] * len(index.ids) + pair_P[:, 1])
        else:
            score_P = (index.image_Id.cpu()[pair_P[:, 0]] * index.text_Nd.cpu()[pair_P[:, 1]]).sum(1)
        right, chance = [], []
        for own, *others in (each.tolist() for each in score_P.split([len(texts) for texts in index.hard if texts])):
            right.append(float(own >= max(others)) / (1 + others.count(own)))
            chance.append(1 / (1 + len(others)))
        return {"tr1_hard": certainty.mean(right, is_share=True), "tr1_hard_chance": float(np.mean(chance))}

    def chosen(self, numbers: Mapping[str, float]) -> RetrievalConfig:
        """Return the section with as many candidates to re-rank as validation chose."""
        return replace(self.settings, rerank=int(numbers.get("rerank_k", 0)))

    def remarks(self, numbers: Mapping[str, float]) -> list[str]:
        """Say which captions went with their pictures, what re-ranking is worth, and so if it makes the search worse."""
        ranked, alone, remarks = numbers["r_mean"], numbers.get("r_mean_itc_only", 0.0), super().remarks(numbers)
        if left_out := numbers.get("num_captions_skipped"):
            remarks.append(f"captions left out with their pictures: {left_out:,}")
        if (limit := self.settings.captions_per_image) and not any(map(generated, self.config.data.val)):
            remarks.append(f"searched among the first {counted(limit, 'caption')} of each picture; --captions-per-image 0: all")
        if not self.is_comparable:
            num_pairs = counted(int(numbers["num_images"] * numbers["num_texts"]), "pair")
            remarks.append(f"no contrast: the matching head scored each of {num_pairs} of a picture and a caption")
        if tried := r_means_tried(numbers):
            k, best = int(numbers["rerank_k"]), max(tried, key=lambda k: tried[k])
            low, high = gain(tried[k or best])
            worth = f"r_mean {tried[k or best]:.3f}, by contrast alone {alone:.3f}, difference {low:.3f} to {high:.3f}"
            chosen = f"the best {k} ({worth})" if k else f"none: not even the best {best} are surely worth it ({worth})"
            remarks.append(f"of {', '.join(map(str, tried))} or no candidates to re-rank, validation chose {chosen}")
        elif ranked < alone:
            worse = f"re-ranking makes this search worse (r_mean {ranked:.3f}, by contrast alone {alone:.3f})"
            remarks.append(f"{worse}: the matching head needs longer training; search without it by --rerank 0 (task.rerank)")
        return remarks

    def search(
        self, index: Index, most: int, *, chooses: bool = False
    ) -> tuple[dict[str, float], tuple[metrics.Ranks, metrics.Ranks]]:
        """Return tr1 … rsum after the best candidates of each query are re-ranked, with a matching head also `…_itc_only`, of
        the contrast alone, and `rerank_k`, how many are re-ranked; and the ranks of pictures' captions (I,) and of captions'
        pictures (T,).

        `most` are re-ranked or, if it chooses, those of `most`, half of it, a quarter and so on that have the highest r_mean
        (`r_mean_k…` of all) and are above contrast alone by more than chance, which the 95 % interval of the difference query
        by query says, else none.
        """
        images, captions, rel = index.image_Id, index.caption_Td, index.relevance
        ways = (images, captions, rel.texts_of_image), (captions, images, rel.images_of_text)
        alone = metrics.best_ranks(*ways[0]), metrics.best_ranks(*ways[1])
        by_contrast = metrics.summary(*alone, rel.image_T)
        if self.contrast.match_head is None or not self.is_comparable:
            return by_contrast, alone
        found = {0: (by_contrast, alone)}
        if most:
            best = [metrics.top_candidates(queries, candidates, most) for queries, candidates, _ in ways]
            scores = self.rerank_scores(index, best[0][0].cpu(), best[1][0].cpu())
            for k in halves(most) if chooses else [most]:
                both = [
                    metrics.reranked_ranks(order[:, :k], first[:, :k], score[:, :k], ways[way][2], alone[way])
                    for way, ((order, first), score) in enumerate(zip(best, scores, strict=True))
                ]
                found[k] = metrics.summary(both[0], both[1], rel.image_T, alone), (both[0], both[1])
        r_mean = {k: numbers["r_mean"] for k, (numbers, _) in found.items()}
        if chooses:
            most = max((k for k in r_mean if gain(r_mean[k])[0] > 0), key=lambda k: (r_mean[k], -k), default=0)
        itc_only = {f"{name}_itc_only": value for name, value in by_contrast.items() if not name.startswith("num")}
        tried = {f"{TRIED}{k}": r_mean[k] for k in r_mean if k and chooses}
        numbers, ranks = found[most]
        return numbers | itc_only | {"rerank_k": most} | tried, ranks

    def index(self, loader: Iterable[SearchPictures | SearchTexts]) -> Index:
        """Compute each picture's and each text's features once, without contrast the match logit of each pair instead, and
        gather them from all processes. Captions that are true of no picture that could be used are left out. Raises UserError
        if nothing is left."""
        images: dict[int, tuple[Tensor, tuple[int, ...], int, str, tuple[str, ...], tuple[int, ...]]] = {}
        texts: dict[int, tuple[Tensor, tuple[int, ...], Tensor, int]] = {}
        pixels: dict[int, Tensor] = {}
        for batch in loader:
            if isinstance(batch, SearchPictures):
                features = self._features(batch, self.image_features, batch.images_BCHW)
                for row, index in enumerate(batch.index_B.tolist()):
                    # a view brings its batch
                    said = batch.names[row], batch.labels[row], batch.hard[row]
                    images[index] = features[row].clone(), batch.captions[row], rank(), *said
                    pixels[index] = batch.images_BCHW[row]
            else:
                features = self._features(batch, self.text_features, batch.ids_BT, batch.is_padding_BT)
                ids, is_padding = batch.ids_BT.cpu(), batch.is_padding_BT.cpu()
                for row, index in enumerate(batch.index_B.tolist()):
                    length = int((~is_padding[row]).sum())
                    kept = ids[row, : self.config.input.padded_text_length or length].clone()
                    texts[index] = features[row].clone(), batch.captions[row], kept, length
        images, texts = (dict(ChainMap(*gather_objects(part))) for part in (images, texts))
        order = sorted(images)  # one that cannot be used may be missing
        all_images, all_texts = [images[index] for index in order], [texts[index] for index in sorted(texts)]
        text_of = {caption: text for text, (_, captions, _, _) in enumerate(all_texts) for caption in captions}
        matches = [(image, caption) for image, (_, captions, *_) in enumerate(all_images) for caption in captions]
        if not matches:
            how = "repair such rows or name other data (eve data check lists what is wrong)"
            raise SharedError(f"none of the pictures to search among can be used; {how}")
        kept, caption_P = torch.tensor([caption for _, caption in matches]).unique(return_inverse=True)
        text_T = torch.tensor([text_of[caption] for caption in kept.tolist()])
        device = next(self.parameters()).device
        index = Index(
            image_Id=torch.stack([features for features, *_ in all_images]).to(device),
            text_Nd=torch.stack([features for features, *_ in all_texts]).to(device),
            text_T=text_T,
            ids=[ids for _, _, ids, _ in all_texts],
            lengths=[length for *_, length in all_texts],
            owner_I=torch.tensor([owner for _, _, owner, *_ in all_images]),
            pixels={new: pixels[old] for new, old in enumerate(order) if old in pixels},
            relevance=metrics.Relevance.from_pairs([image for image, _ in matches], caption_P, len(all_images), len(text_T)),
            names=[name for *_, name, _, _ in all_images],
            labels=[labels for *_, labels, _ in all_images],
            hard=[hard for *_, hard in all_images],
            kept=kept.tolist(),
            num_left_out=len(text_of) - len(text_T),
        )
        if self.is_comparable:
            return index
        every = torch.eye(len(index.ids), device=device)
        return replace(index, image_Id=self.every_score(index).to(device), text_Nd=every)

    def _features(self, batch: SearchBatch, compute: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """Return features on the CPU, of no width if they are of no use."""
        return compute(*given).cpu() if self.is_comparable else torch.empty(len(batch.index_B), 0)

    def every_score(self, index: Index) -> Tensor:
        """Return the match logit of each picture with each distinct text that is searched among, float32 (I, N) on the CPU, of
        others 0. Each process computes those of its own pictures; a picture goes through its tower once."""
        own_I, searched_N = (index.owner_I == rank()).nonzero()[:, 0], index.text_T.unique()
        num_texts, device = len(searched_N), next(self.parameters()).device
        num_pairs = len(index.owner_I) * num_texts
        if num_pairs >= MANY_PAIRS:
            fewer = "fewer: --samples, or data.val_samples in training"
            say(f"{num_pairs:,} fusion passes: {len(index.owner_I):,} pictures with each of {num_texts:,} texts ({fewer})")
        score_IN = torch.zeros(len(own_I), len(index.ids))
        by_length_N = searched_N[torch.tensor(index.lengths)[searched_N].argsort(stable=True)]
        chunks = own_I.split(ONE_SIDE_AT_ONCE) if len(own_I) else ()
        what = f"{ONE_SIDE_AT_ONCE} pictures with {num_texts:,} texts"
        for number, images in enumerate(told(chunks, what, len(chunks))):
            image = self.encoder.image(normalize(torch.stack([index.pixels[image] for image in images.tolist()])))
            rows = torch.arange(len(images))[:, None] + number * ONE_SIDE_AT_ONCE
            for texts in by_length_N.split(ONE_SIDE_AT_ONCE):
                score_IN[rows, texts] = self.match_each(image, *self._padded(index, texts, device))[:, :, 1].float().cpu()
        parts = gather_objects((own_I, score_IN))
        return torch.cat([scores for _, scores in parts])[torch.cat([images for images, _ in parts]).argsort()]

    def _padded(self, index: Index, texts: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the ids of some texts (N, L), and which are padding, None if none are."""
        ids_NL = pad_sequence([index.ids[text] for text in texts.tolist()], batch_first=True)
        is_padding_NL = torch.arange(ids_NL.shape[1]) >= torch.tensor(index.lengths)[texts, None]
        return ids_NL.to(device), is_padding_NL.to(device) if is_padding_NL.any() else None

    def rerank_scores(self, index: Index, captions_IK: Tensor, images_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matching head's logits of each picture's captions (I, K) and of each caption's pictures (T, K)."""
        num_texts = len(index.ids)
        pairs_IK = torch.arange(len(captions_IK))[:, None] * num_texts + index.text_T[captions_IK]
        score_IK, score_TK = self.pair_scores_of(index, pairs_IK, images_TK * num_texts + index.text_T[:, None])
        return score_IK, score_TK

    def pair_scores_of(self, index: Index, *pairs: Tensor) -> list[Tensor]:
        """Return the scores of pairs, each the number of a picture times the number of texts plus that of a text, in the same
        shapes.

        A pair of picture and text is scored once, however often it is among them; each process scores the pairs of its own
        pictures.
        """
        num_texts = len(index.ids)
        pair_P = torch.cat([each.flatten() for each in pairs]).unique()
        own_P = pair_P[index.owner_I[pair_P // num_texts] == rank()]
        parts = gather_objects((own_P, self.match_scores(index, own_P // num_texts, own_P % num_texts)))
        all_P, order_P = torch.cat([pairs for pairs, _ in parts]).sort()
        score_P = torch.cat([scores for _, scores in parts])[order_P]
        return [score_P[torch.searchsorted(all_P, each)] for each in pairs]

    def match_scores(self, index: Index, image_P: Tensor, text_P: Tensor) -> Tensor:
        """Return what each pair of picture and distinct text is ordered by (task.rerank_by), float32 (P,) on the CPU; pairs of
        equally long texts go together."""
        device = index.image_Id.device
        length_P = torch.tensor(index.lengths)[text_P]
        score_P = torch.empty(len(image_P))
        if not len(image_P):  # splitting nothing gives one empty part
            return score_P
        for chosen in length_P.argsort(stable=True).split(PAIRS_AT_ONCE):
            images, texts = image_P[chosen], text_P[chosen]
            similarity_B = (index.image_Id[images.to(device)] * index.text_Nd[texts.to(device)]).sum(1)
            # what is in several pairs is embedded once: of towers that is most of the work
            (images, image_B), (texts, text_B) = (rows.unique(return_inverse=True) for rows in (images, texts))
            pixels = torch.stack([index.pixels[image] for image in images.tolist()])
            ids_BL, padding = self._padded(index, texts, device)
            pairs = image_B.to(device), text_B.to(device)
            score_P[chosen] = self.pair_scores(pixels, ids_BL, padding, similarity_B, pairs).cpu()
        return score_P

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `image_embeds` (I, d), `text_embeds` (C, d) and, of both, with contrast `logits_per_image` (I, C), similarity
        over the temperature, and `logits_per_text`, and with a matching head and I = C `match_logits` (B, 2) row by row.

        labels: int64 (B,), of true pairs in order, equal where two show the same picture, so that they are no negatives of
        each other. In training mode with labels, only the loss is computed.
        """
        images, ids, is_padding = (tensors.get(name) for name in ("pixels", "ids", "is_padding"))
        if images is None and ids is None:
            raise UserError("give pixel_values, input_ids or both")
        outputs: dict[str, Tensor] = {}
        if labels is not None:
            if images is None or ids is None or is_padding is None or not len(images) == len(ids) == len(labels):
                raise UserError("labels need as many pixel_values and input_ids: a picture and its text in each row")
            pairs = CaptionBatch(
                images_BCHW=images, ids_BT=ids, is_padding_BT=is_padding, where=(), picture_B=labels, caption_B=labels
            )
            outputs["loss"] = self(pairs).loss
            if self.training:
                return outputs
        if images is not None:
            outputs["image_embeds"] = self.image_features(images)
        if ids is not None:
            outputs["text_embeds"] = self.text_features(ids, is_padding)
        if images is not None and ids is not None:
            if self.is_comparable:
                similarity_IC = outputs["image_embeds"] @ outputs["text_embeds"].T / self.contrast.features.temperature
                outputs |= {"logits_per_image": similarity_IC, "logits_per_text": similarity_IC.T}
            if self.contrast.match_head is not None and len(images) == len(ids):
                outputs["match_logits"] = self.match(images, ids, is_padding)[0]
        return outputs


def halves(k: int) -> list[int]:
    """Return k, half of it, a quarter and so on, down to 2; of one candidate there is no order."""
    return [k >> times for times in range(k.bit_length() - 1)]


def r_means_tried(numbers: Mapping[str, float]) -> dict[int, float]:
    """Return r_mean by each number of candidates that validation has tried to re-rank, the largest first."""
    return {int(name[len(TRIED) :]): value for name, value in numbers.items() if name.startswith(TRIED)}


def gain(r_mean: float) -> tuple[float, float]:
    """Return both ends of the 95 % interval of how far a search after re-ranking is above one by contrast alone."""
    low, high = getattr(r_mean, "versus", {}).get("r_mean_itc_only", (0.0, 0.0))
    return low, high


def first_hits(
    names: Sequence[str], relevance: metrics.Relevance, ranks_I: metrics.Ranks, ranks_T: metrics.Ranks
) -> dict[str, float]:
    """Return whether the first hit of each query is true, of hits that tie how likely; pictures are named by their row,
    captions by their number there, both by all that is searched among, and what one picture is in belongs together."""
    sides = relevance.texts_of_image
    pool = hash_of(repr((names, sides.start_Q1.tolist(), sides.candidate_M.tolist())).encode())
    asked, seen = [("tr1", image, "") for image in range(len(names))], Counter()
    for image in relevance.image_T.tolist():
        seen[image] += 1
        asked.append(("ir1", image, f" {seen[image]}"))
    hits = {}
    both = ranks_I, ranks_T
    is_asked, hit = torch.cat([each.is_asked_Q for each in both]).tolist(), torch.cat([each.hits(1) for each in both]).tolist()
    for (way, image, number), has_match, value in zip(asked, is_asked, hit, strict=True):
        if has_match:
            hits[f"{way} {names[image]}{number} {pool:x}{GROUP}{names[image]}"] = value
    return hits
