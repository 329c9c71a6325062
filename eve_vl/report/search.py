"""What a retrieval run finds for a few texts and pictures among some of its validation data.

Letters: Q queries, C candidates, K best candidates of a query.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batch import CaptionBatch
from eve_vl.data.downstream import CaptionedPictures, SearchSet
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.metrics import retrieval as metrics
from eve_vl.model.moe import RouterStats
from eve_vl.report.evidence import BATCH
from eve_vl.report.examples import overlays, pixels_of
from eve_vl.report.routing import Routing, add_choices
from eve_vl.run import LoadedRun, eval_dataset
from eve_vl.tasks.retrieval import Index, Retrieval

NUM_SEARCHED = 200
NUM_QUERIES = 30  # each way, spread evenly; the shown ones are chosen among them
NUM_EACH = 3  # right ones, and wrong ones, each way
NUM_FOUND = 5
MAX_RERANKED = 16
COMMON = 0.05  # share of the texts; rarer words are seldom things that a model has learnt to see


@dataclass(frozen=True, kw_only=True)
class Item:
    """A text (no picture) or a picture (no text)."""

    text: str
    picture: np.ndarray | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Query:
    """A text or picture, with the items of the other kind that it finds, best first."""

    item: Item
    found: tuple[Item, ...]
    is_match: tuple[bool, ...]
    """Of each one found: whether it is true of the query."""
    truth: Item
    """One of the items that it should find."""
    word: str = ""
    """Of a picture: a word of that text."""
    heat: tuple[np.ndarray, ...] = ()
    """Of a picture: it under what the word takes from it that speaks for the match, if that can be told."""

    @property
    def is_right(self) -> bool:
        """Whether the first one found is a match."""
        return self.is_match[0]


@dataclass(frozen=True, kw_only=True)
class Searches:
    """Queries both ways, right ones first."""

    by_text: tuple[Query, ...]
    by_picture: tuple[Query, ...]
    num_pictures: int
    num_texts: int
    num_reranked: int
    routing: Routing


def gather_searches(run: LoadedRun, num_each: int = NUM_EACH, num_searched: int = NUM_SEARCHED) -> Searches:
    """Search in float32 among rows spread evenly over the validation data. Raises UserError if that cannot be read."""
    assert isinstance(run.task, Retrieval)
    data = replace(run.config.data, val_samples=num_searched, num_workers=0)
    config = replace(run.config, data=data)
    _, sources = open_train_and_val(config, CaptionedPictures.kind)
    dataset = eval_dataset(config, sources, run.tokenizer)
    assert isinstance(dataset, SearchSet)
    device = next(run.task.parameters()).device
    pairs = CaptionedPictures(sources, config, run.tokenizer, training=False)
    chosen: list[Tensor] = []
    num_pairs, num_reranked = 0, min(run.task.settings.rerank, MAX_RERANKED)
    with torch.inference_mode():
        for batch in eval_loader(pairs, batch_size=BATCH, rank=0, world=1):
            num_pairs += len(batch.where)
            add_choices(chosen, _passes(run.task, batch.to(device)))
        index = run.task.index(batch.to(device) for batch in eval_loader(dataset, batch_size=BATCH, rank=0, world=1))
        by_text = _queries(run.task, index, dataset, num_reranked, by_text=True)
        by_picture = _queries(run.task, index, dataset, num_reranked, by_text=False)
    return Searches(
        by_text=_right_and_wrong(by_text, num_each),
        by_picture=tuple(_with_heat(run, dataset, query) for query in _right_and_wrong(by_picture, num_each)),
        num_pictures=len(dataset.pictures),
        num_texts=len(dataset.captions),
        num_reranked=num_reranked,
        routing=Routing.of(chosen, num_pairs),
    )


def _with_heat(run: LoadedRun, dataset: SearchSet, query: Query) -> Query:
    """Return a picture with the Grad-CAM of a word of its true text."""
    assert query.item.picture is not None
    word = content_word(query.truth.text, dataset.texts)
    if not word:
        return query
    return replace(query, word=word, heat=overlays(run, [query.item.picture], query.truth.text, word=word))


def content_word(text: str, texts: Sequence[str]) -> str:
    """Return the word of a text that says most about what is seen: of those that are in COMMON of all texts (else of all) the
    one in the fewest, the longest of several; empty if the text has no word."""
    counts = Counter(word for each in texts for word in set(_words(each)))
    words = _words(text)
    common = [word for word in words if counts[word] >= COMMON * len(texts)]
    return min(common or words, key=lambda word: (counts[word], -len(word)), default="")


def _words(text: str) -> list[str]:
    return re.findall(r"\w{3,}", text)


def _queries(task: Retrieval, index: Index, dataset: SearchSet, num_reranked: int, *, by_text: bool) -> list[Query]:
    """Return NUM_QUERIES texts, or pictures, that have a match, with what they find."""
    pictures = [
        Item(text="", picture=pixels_of(index.pixels[row]), where=f"picture {row}") for row in range(len(dataset.pictures))
    ]
    texts = [Item(text=text, picture=None, where=f"text {row}") for row, text in enumerate(dataset.captions)]
    matches: list[list[int]] = [list(row) for row in dataset.captions_of]
    asking, others = pictures, texts
    if by_text:
        matches = [[] for _ in texts]
        for picture, row in enumerate(dataset.captions_of):
            for text in row:
                matches[text].append(picture)
        asking, others = texts, pictures
    able = [query for query, row in enumerate(matches) if row]
    queries = [able[i] for i in np.linspace(0, len(able), min(NUM_QUERIES, len(able)), endpoint=False).astype(int)]
    order_QK = best_candidates(task, index, queries, num_reranked, by_text=by_text)
    return [
        Query(
            item=asking[query],
            found=tuple(others[candidate] for candidate in order_K[:NUM_FOUND]),
            is_match=tuple(candidate in matches[query] for candidate in order_K[:NUM_FOUND]),
            truth=others[matches[query][0]],
        )
        for query, order_K in zip(queries, order_QK.tolist(), strict=True)
    ]


def best_candidates(task: Retrieval, index: Index, queries: Sequence[int], num_reranked: int, *, by_text: bool) -> Tensor:
    """Return the best pictures for captions, or the best captions for pictures, int64 (Q, K): by contrast, then the first
    num_reranked of them in the order of the matching head."""
    query_Q = torch.tensor(queries)
    image_Id, caption_Td = index.image_Id, index.caption_Td
    query_Qd, candidate_Cd = (caption_Td[query_Q], image_Id) if by_text else (image_Id[query_Q], caption_Td)
    order_QK = metrics.rank_from_features(query_Qd, candidate_Cd, max(num_reranked, NUM_FOUND)).cpu()
    if num_reranked:
        first_QK = order_QK[:, :num_reranked]
        asked_QK = query_Q[:, None].expand_as(first_QK)
        image_QK, caption_QK = (first_QK, asked_QK) if by_text else (asked_QK, first_QK)
        score_QK = task.match_scores(index, image_QK.flatten(), index.text_T[caption_QK.flatten()]).view_as(first_QK)
        new_QK = first_QK.gather(1, score_QK.sort(dim=1, descending=True, stable=True).indices)
        order_QK = torch.cat([new_QK, order_QK[:, num_reranked:]], dim=1)
    return order_QK


def _passes(task: Retrieval, batch: CaptionBatch) -> list[list[RouterStats]]:
    """Return what the routers do with the pictures alone, the texts alone and, if there is a matching head, the pairs."""
    image, text = task.embed_images(batch.images_BCHW), task.encoder.text(batch.ids_BT, batch.is_padding_BT)
    made = [task.encoder.encode(tokens).router for tokens in (image, text)]
    if task.contrast.match_head is not None:
        made += task.contrast.match(task.encoder, image, text)[1]
    return made


def _right_and_wrong(queries: Sequence[Query], num_each: int) -> tuple[Query, ...]:
    return tuple(
        query for verdict in (True, False) for query in [each for each in queries if each.is_right is verdict][:num_each]
    )
