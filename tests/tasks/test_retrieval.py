"""Retrieval: losses against loops over pairs, search against a naive one."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages
from eve_vl.data.loader import eval_loader
from eve_vl.data.masked_batches import PairBatch
from eve_vl.metrics.matches import Relevance
from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.tasks.contrast.contrast import MAX_TEMPERATURE, MIN_TEMPERATURE, Contrast
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval import reranking
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.gallery_metrics import hard_caption_accuracy
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.rerank_choice import search_gallery
from eve_vl.tasks.retrieval.search_set import SearchImages, SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.utils.errors import UserError
from helpers.slow_ranking import hits_of, slow_hit
from helpers.tiny_tasks import TOKENIZER, build, config_of, eval_set, numbers_of, searchable
from helpers.twins import ListSource, pairs, tiny_config
from tests.test_objectives import slow_contrastive


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def retrieval(**task: Any) -> Retrieval:
    task = {"rerank": 4} | task
    found = build(tiny_config(task=RetrievalConfig(**task), model={"balance_weight": 0.5}))
    assert isinstance(found, Retrieval)
    return found


def caption_batch(
    task: Retrieval | ContrastMatch, rows: tuple[int, ...] = (0, 1, 3, 6, 7, 2)
) -> CaptionBatch:
    """Rows 0 and 3 show one image."""
    dataset = CaptionedImages(
        [searchable()], replace(task.config, task=RetrievalConfig()), TOKENIZER, training=True
    )
    batch = dataset.collate([dataset[(0, 0, row)] for row in rows])
    assert isinstance(batch, CaptionBatch)
    return batch


def pieces(batch: CaptionBatch | PairBatch) -> list[tuple[Tensor, Tensor]]:
    """Image in [-1, 1] and token ids without padding of each row."""
    return [
        (image[None].float() / 127.5 - 1, ids[~is_padding][None])
        for image, ids, is_padding in zip(
            batch.images_BCHW, batch.ids_BT, batch.is_padding_BT, strict=True
        )
    ]


def features(task: Any, pixels: Iterable[Tensor], texts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features of each image and of each text, alone in its batch."""

    def feature(projection: Any, *tokens: Any) -> Tensor:
        states = task.encoder.encode(*tokens).x_BND[0]
        projected = projection.weight @ (
            states.mean(0) if task.settings.pooling == "mean" else states[0]
        )
        return projected / projected.square().sum().sqrt()

    images = [
        feature(task.contrast.features.image, task.encoder.image(each), None) for each in pixels
    ]
    return torch.stack(images), torch.stack(
        [feature(task.contrast.features.text, None, task.encoder.text(ids, None)) for ids in texts]
    )


def match_logits(task: Any, pixels: Tensor, ids: Tensor) -> list[float]:
    """Of one pair alone: no, yes."""
    image = task.encoder.image(pixels)
    states = task.encoder.encode(image, task.encoder.text(ids, None)).x_BND
    return task.contrast.match_head(states[0, image.num_image]).tolist()


# What is trained


@torch.no_grad()
@pytest.mark.parametrize(("merge", "pooling"), [(False, "cls"), (True, "mean")])
def test_losses_equal_loops_over_queries_and_pairs(merge, pooling, monkeypatch):
    task = retrieval(
        itc_weight=0.7, itm_weight=0.3, projection_dim=8, dedup_captions=merge, pooling=pooling
    )
    batch = replace(caption_batch(task), caption_B=torch.tensor([6, 8, 9, 7, 8, 6]))
    is_match = [
        [row == other or {row, other} == {0, 2} for other in range(6)] for row in range(6)
    ]  # of one image
    for row, other in ((1, 4), (4, 1), (0, 5), (5, 0)) if merge else ():  # in the same words
        is_match[row][other] = True
    asked: list[tuple[Tensor, list]] = []
    choices = [[1, 3, 4, 0, 5, 2], [4, 2, 5, 1, 0, 3]]  # wrong images, then wrong texts

    def choose(similarity: Tensor, matches: Tensor, *_: Any) -> Tensor:
        asked.append((similarity, matches.tolist()))
        return torch.tensor(choices[len(asked) - 1])

    monkeypatch.setattr(objectives, "hard_negatives", choose)
    output = task(batch)
    rows = pieces(batch)
    images, texts = features(task, *zip(*rows, strict=True))
    temperature = task.contrast.features.temperature.item()
    expected = slow_contrastive(images, texts, images, texts, torch.tensor(is_match), temperature)
    assert output.terms["itc"].item() == pytest.approx(expected, rel=1e-4)
    similarity = images @ texts.T / temperature
    for (given, matches), wanted in zip(asked, (similarity.T, similarity), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
        assert matches == is_match
    total = right = 0.0
    source_images, captions = (
        list(range(6)) + choices[0] + list(range(6)),
        list(range(6)) * 2 + choices[1],
    )
    for number, (image, text) in enumerate(zip(source_images, captions, strict=True)):
        no, yes = match_logits(task, rows[image][0], rows[text][1])
        probability = 1 / (1 + math.exp(no - yes))
        total -= math.log(probability if number < 6 else 1 - probability)
        right += (yes > no) == (number < 6)
    assert output.terms["itm"].item() == pytest.approx(total / 18, rel=1e-4)
    assert output.terms["itm_acc"].item() == pytest.approx(right / 18)
    weighted = 0.7 * output.terms["itc"] + 0.3 * output.terms["itm"] + 0.5 * output.terms["balance"]
    assert output.loss.item() == pytest.approx(weighted.item(), rel=1e-6)


def test_without_matching_there_is_no_head_and_no_fusion_pass(monkeypatch):
    task = retrieval(itm_weight=0.0, rerank=0)
    assert task.contrast.match_head is None
    monkeypatch.setattr(Contrast, "match", None)
    output = task(caption_batch(task))
    assert not [name for name in output.terms if name.startswith("itm")]
    assert output.loss.item() == pytest.approx(
        (output.terms["itc"] + 0.5 * output.terms["balance"]).item(), rel=1e-6
    )


@pytest.mark.parametrize(
    ("start", "end"), [(-0.1, MIN_TEMPERATURE), (0.2, 0.2), (3.0, MAX_TEMPERATURE)]
)
def test_temperature_stays_within_bounds_and_learns(start, end):
    task = retrieval()
    temperature = task.contrast.features.temperature
    with torch.no_grad():
        temperature.fill_(start)
    task(caption_batch(task)).loss.backward()
    assert temperature.item() == pytest.approx(start)  # a forward pass changes no parameter
    task.after_step(0.1)
    assert temperature.item() == pytest.approx(end)
    assert temperature.grad is not None


def test_a_batch_of_one_image_has_only_matches():
    task = retrieval()
    output = task(caption_batch(task, (0, 3, 4)))
    assert output.loss.isfinite()
    (no, yes) = (match_logits(task, *pieces(caption_batch(task, (row,)))[0]) for row in (0, 3))
    assert len(no) == len(yes) == 2
    assert output.terms["itc"].item() >= math.log(3) - 1e-5  # three targets of a third each


@torch.no_grad()
def test_pretraining_by_contrast_gives_the_same_terms_as_retrieval(monkeypatch):
    """One owner: the baselines of masked signal modelling pre-train with what retrieval is
    fine-tuned with."""
    monkeypatch.setattr(
        objectives, "hard_negatives", lambda similarity, *_: torch.arange(len(similarity)).roll(1)
    )
    config = tiny_config(task=ContrastMatchConfig(mlm_weight=2.0, itc_weight=0.7, itm_weight=0.3))
    baseline = build(config)
    assert isinstance(baseline, ContrastMatch)
    dataset = MaskedPairs([pairs(5)], config, TOKENIZER, training=True)
    batch = dataset.collate([dataset[(0, 0, row)] for row in range(5)])
    assert isinstance(batch, PairBatch)
    output = baseline(batch)
    task = retrieval()
    task.encoder, task.contrast = baseline.encoder, baseline.contrast
    names = ("images_BCHW", "ids_BT", "is_padding_BT", "where", "image_id_B", "caption_B")
    terms = task(CaptionBatch(**{name: getattr(batch, name) for name in names})).terms
    for name in ("itc", "itm", "itm_acc"):
        torch.testing.assert_close(output.terms[name], terms[name])
    weighted = 2 * output.terms["mlm"] + 0.7 * output.terms["itc"] + 0.3 * output.terms["itm"]
    assert output.loss.item() == pytest.approx(
        (weighted + 0.001 * output.terms["balance"]).item(), rel=1e-6
    )


# What is found


def naive_search(
    task: Retrieval, dataset: SearchSet, k: int
) -> tuple[list[Any], list[Any], set[tuple[int, int]]]:
    """Hits at 1, 5 and 10 of each image and of each caption, query after query, and the pairs of
    image and words that were compared."""
    pixels = [
        dataset[(0, 0, index)].image[None].float() / 127.5 - 1
        for index in range(len(dataset.images))
    ]
    text_of = {
        caption: text for text, captions in enumerate(dataset.captions_in) for caption in captions
    }
    ids = [
        torch.from_numpy(dataset.ids[text_of[caption]])[None]
        for caption in range(len(dataset.captions))
    ]
    images, texts = features(task, pixels, ids)
    compared: set[tuple[int, int]] = set()

    def hits(query: int, scores: list[float], is_match: list[bool], pair_of: Any) -> list[float]:
        order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate))
        for image, caption in (pair_of(query, candidate) for candidate in order[:k]):
            compared.add((image, text_of[caption]))
        second = {
            candidate: match_of(*pair_of(query, candidate), similarity=scores[candidate])
            for candidate in order[:k]
        }
        keys = [
            (c in second, round(second.get(c, 0.0), 4), round(score, 5))
            for c, score in enumerate(scores)
        ]
        return [
            slow_hit(keys, [c for c, right in enumerate(is_match) if right], limit)
            for limit in (1, 5, 10)
        ]

    @cache
    def logits_of(image: int, text: int) -> list[float]:
        return match_logits(task, pixels[image], ids[text])

    def match_of(image: int, text: int, similarity: float) -> float:
        no, yes = logits_of(image, text)
        is_sum = task.settings.rerank_by == "sum"
        return yes - no + similarity / task.contrast.features.temperature.item() if is_sum else yes

    relevant = [[text in true for text in range(len(ids))] for true in dataset.captions_of]
    by_image = [
        hits(i, (texts @ images[i]).tolist(), relevant[i], lambda query, other: (query, other))
        for i in range(len(pixels))
    ]
    by_text = [
        hits(
            t,
            (images @ texts[t]).tolist(),
            [row[t] for row in relevant],
            lambda query, other: (other, query),
        )
        for t in range(len(ids))
    ]
    return by_image, by_text, compared


def recall_table(by_image: list[list[float]], by_text: list[list[float]]) -> dict[str, float]:
    ways = (("tr", by_image), ("ir", by_text))
    return {
        f"{way}{k}": statistics.mean(column)
        for way, rows in ways
        for k, column in zip((1, 5, 10), zip(*rows, strict=True), strict=True)
    }


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 2, 4, 10_000])
@pytest.mark.parametrize("captions_per_image", [0, 1])
@pytest.mark.parametrize(("merge", "by"), [(False, "match"), (True, "sum")])
def test_search_equals_a_naive_one(k, captions_per_image, merge, by):
    """With several texts of an image, texts of several images, and more to re-rank than there
    is."""
    pooling = "mean" if merge else "cls"
    searched = {
        "captions_per_image": captions_per_image,
        "dedup_captions": merge,
        "pooling": pooling,
    }
    task = retrieval(rerank=k, rerank_by=by, **searched)
    dataset = eval_set(task.config)
    assert isinstance(dataset, SearchSet)
    numbers = numbers_of(task, dataset, 5)
    by_image, by_text, _ = naive_search(task, dataset, k)
    expected = recall_table(by_image, by_text)
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    assert numbers["r_mean"] == pytest.approx(sum(expected.values()) / 6)
    first = recall_table(*naive_search(task, dataset, 0)[:2])
    assert {name: numbers[f"{name}_itc_only"] for name in first} == pytest.approx(first)
    assert numbers["rerank_k"] == k
    num_pairs = sum(map(len, dataset.captions_of))
    assert (numbers["num_images"], numbers["num_texts"]) == (9, len(dataset.captions))
    assert numbers["texts_per_image"] == pytest.approx(num_pairs / 9)
    assert numbers["images_per_text"] == pytest.approx(num_pairs / len(dataset.captions))


@torch.no_grad()
@pytest.mark.parametrize("k", [2, 3, 50])
def test_reranked_ranks_equal_a_naive_loop_and_no_pair_is_scored_twice(k, monkeypatch):
    """And what is in several pairs is embedded once."""
    task = retrieval(rerank=k)
    dataset = eval_set(task.config)
    assert isinstance(dataset, SearchSet)
    index = gather_gallery(task, eval_loader(dataset, batch_size=4, rank=0, world=1))
    scored: list[tuple[int, int]] = []
    original = reranking.match_scores

    def spy(task: Any, found: Gallery, images: Tensor, texts: Tensor) -> Tensor:
        scored.extend(zip(images.tolist(), texts.tolist(), strict=True))
        return original(task, found, images, texts)

    monkeypatch.setattr(reranking, "match_scores", spy)
    seen = Counter()

    def counting(name: str) -> Any:
        return task.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs: seen.update({name: len(inputs[0])})
        )

    hooks = [counting(name) for name in ("encoder.image", "encoder.text", "contrast.match_head")]
    result = search_gallery(task, index, k)
    by_image, by_text = result.ranks_I, result.ranks_T
    for hook in hooks:
        hook.remove()
    expected_image, expected_text, compared = naive_search(task, dataset, k)
    assert hits_of(by_image) == [pytest.approx(each) for each in expected_image]
    assert hits_of(by_text) == [pytest.approx(each) for each in expected_text]
    assert sorted(scored) == sorted(compared)
    distinct = (len(set(column)) for column in zip(*compared, strict=True))
    assert list(seen.values()) == [*distinct, len(compared)]


@torch.no_grad()
def test_pairs_of_different_lengths_are_scored_as_alone(monkeypatch):
    """In chunks that mix lengths, so that some texts are padded."""
    monkeypatch.setattr("eve_vl.tasks.contrast.pair_scores.PAIRS_AT_ONCE", 7)
    task = retrieval()
    dataset = eval_set(task.config)
    assert isinstance(dataset, SearchSet)
    index = gather_gallery(task, eval_loader(dataset, batch_size=4, rank=0, world=1))
    images, texts = torch.arange(9).repeat_interleave(2), torch.randint(len(dataset.texts), (18,))
    found = reranking.match_scores(task, index, images, texts)
    for score, image, text in zip(found.tolist(), images.tolist(), texts.tolist(), strict=True):
        pixels = dataset[(0, 0, image)].image[None].float() / 127.5 - 1
        expected = match_logits(task, pixels, torch.from_numpy(dataset.ids[text])[None])[1]
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(reranking.match_scores(task, index, images[:0], texts[:0])) == 0


class DeviceTensor(Tensor):
    """A tensor that tells copies on the host from itself, without a GPU."""

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a plain tensor."""
        return self.as_subclass(Tensor).clone()


@torch.no_grad()
def test_gallery_keeps_pixels_on_the_host():
    task = retrieval()
    batches = []
    for batch in eval_loader(eval_set(task.config), batch_size=4, rank=0, world=1):
        if isinstance(batch, SearchImages):
            images = batch.images_BCHW.as_subclass(DeviceTensor)
            batches.append(replace(batch, images_BCHW=images))
        else:
            batches.append(batch)
    gallery = gather_gallery(task, batches)
    assert {type(pixels) for pixels in gallery.pixels.values()} == {Tensor}
    assert {pixels.dtype for pixels in gallery.pixels.values()} == {torch.uint8}


@torch.no_grad()
def test_each_image_and_each_text_is_encoded_once_for_the_index():
    task = retrieval()
    dataset = eval_set(task.config)
    assert isinstance(dataset, SearchSet)
    rows = {"image": 0, "text": 0}
    for name in rows:
        module = getattr(task.encoder, name)
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: rows.update({name: rows[name] + len(inputs[0])})
        )
    index = gather_gallery(task, eval_loader(dataset, batch_size=4, rank=0, world=1))
    assert rows == {"image": len(dataset.images), "text": len(dataset.texts)}
    assert [ids.tolist() for ids in index.ids] == [ids.tolist() for ids in dataset.ids]
    assert sorted(index.pixels) == list(range(9))
    torch.testing.assert_close(index.image_Id.norm(dim=1), torch.ones(9))


@torch.no_grad()
def test_a_query_without_a_match_is_left_out():
    """Scenes may be described by a text that is searched among elsewhere; here an image whose only
    text is cut away."""
    rows = [replace(pairs(3)[row], captions=(f"text {row}",)) for row in range(3)]
    task = build(config_of("retrieval"))
    assert isinstance(task, Retrieval)
    dataset = SearchSet([ListSource(rows)], task.config, TOKENIZER)
    dataset.captions_of[1] = ()
    numbers = numbers_of(task, dataset, 3)
    assert (
        numbers["num_queries_without_match"] == 1
    )  # the image; its text is no candidate of anybody
    assert (numbers["num_texts"], numbers["num_captions_skipped"]) == (2, 1)
    assert numbers["texts_per_image"] == pytest.approx(2 / 3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["retrieval", "retrieval_merged"])
@pytest.mark.parametrize("unreadable", [(5,), (0, 3, 4), (1, 8)])
def test_a_search_without_what_cannot_be_used_is_one_without_these_rows(name, unreadable):
    """Rows 0, 3 and 4 show one image; a caption of row 1 is one of row 7 too."""
    rows, task = searchable().rows, build(config_of(name))
    broken = list(rows)
    for row in unreadable:
        broken[row] = replace(
            rows[row], image=ImageBytes(data=b"junk" if row in (0, 3, 4) else b"junk %d" % row)
        )
    left = [row for i, row in enumerate(rows) if i not in unreadable]
    found, expected = (
        numbers_of(task, SearchSet([ListSource(each)], task.config, TOKENIZER), 4, skipped=[])
        for each in (broken, left)
    )
    assert found.pop("num_captions_skipped") > 0
    assert found == expected


def test_a_search_among_nothing_says_what_to_do():
    task = build(config_of("retrieval"))
    rows = [
        replace(row, image=ImageBytes(data=b"junk %d" % i))
        for i, row in enumerate(searchable().rows)
        if row
    ]
    with pytest.raises(
        UserError, match="none of the images to search among can be used; repair such rows"
    ):
        numbers_of(task, SearchSet([ListSource(rows)], task.config, TOKENIZER), 4, skipped=[])


def test_people_are_told_where_the_matching_head_spoils_the_search():
    task = retrieval(rerank=4)
    numbers = numbers_of(task, eval_set(task.config), 5)
    flipped = numbers | {"r_mean": numbers["r_mean_itc_only"], "r_mean_itc_only": numbers["r_mean"]}
    assert numbers["r_mean"] != numbers["r_mean_itc_only"]
    better, worse = sorted((numbers, flipped), key=lambda each: each["r_mean"], reverse=True)
    assert evaluator_of(task).warnings(better) == []
    (remark,) = evaluator_of(task).warnings(worse)
    assert f"r_mean {worse['r_mean']:.3f}, with ITC only {worse['r_mean_itc_only']:.3f}" in remark
    assert "--rerank 0" in remark
    assert (
        evaluator_of(task).warnings(numbers_of(retrieval(rerank=0), eval_set(task.config), 5)) == []
    )  # nothing to compare with


# How many candidates are worth re-ranking


def scored_index(num: int) -> tuple[Gallery, Tensor]:
    """Images with a caption each by chance, neither alike: contrast finds a third first; with what
    it makes of each pair."""
    image_Id = torch.nn.functional.normalize(torch.randn(num, 8), dim=1)
    text_Nd = torch.nn.functional.normalize(image_Id + 0.4 * torch.randn(num, 8), dim=1)
    rows = torch.arange(num)
    relevance = Relevance.from_pairs(rows, rows, num, num)
    empty = {
        "ids": [rows[:1]] * num,
        "lengths": [],
        "pixels": {},
        "owner_I": torch.zeros(num, dtype=torch.int64),
    }
    index = Gallery(image_Id=image_Id, text_Nd=text_Nd, text_T=rows, relevance=relevance, **empty)
    return index, image_Id @ text_Nd.T


def shares_of_queries(similarity: Tensor, score: Tensor, k: int) -> list[float]:
    """What each query adds to r_mean, images' first: image i is true of caption i alone."""
    shares = []
    for first, second in ((similarity, score), (similarity.T, score.T)):
        for query in range(len(first)):
            order = sorted(range(len(first)), key=lambda candidate: -first[query, candidate].item())
            order[:k] = sorted(order[:k], key=lambda candidate: -second[query, candidate].item())
            shares.append(
                sum(order.index(query) < limit for limit in (1, 5, 10)) / (6 * len(first))
            )
    return shares


def least_gain(shares: list[float], before: list[float]) -> float:
    """The lower end of Student's 95 % interval of what images gain with their captions, one more
    and one less won."""
    num = len(shares) // 2
    gains = [
        num * (shares[i] + shares[num + i] - before[i] - before[num + i]) for i in range(num)
    ] + [1.0, -1.0]
    quantile = 1.984  # Student's for 101 degrees of freedom
    return statistics.mean(gains) - quantile * statistics.stdev(gains) / math.sqrt(len(gains))


# what a matching head makes of pairs, given which are true, how alike contrast finds them and noise
HEADS = {
    "oracle": (lambda true, similarity, noise: true, 16),
    "bad": (lambda true, similarity, noise: noise, 0),
    "worst": (lambda true, similarity, noise: -true, 0),
    "contrast": (lambda true, similarity, noise: similarity, 0),
    "slight": (lambda true, similarity, noise: similarity + true / 200, 0),
    "near": (lambda true, similarity, noise: true + 2 * (similarity < 0.5), 4),
    "noisy": (lambda true, similarity, noise: 2 * true + noise, None),
}


@pytest.mark.parametrize("head", HEADS)
def test_validation_chooses_what_a_slow_loop_over_all_numbers_does(head, monkeypatch):
    task, num = retrieval(rerank=16), 100
    index, similarity = scored_index(num)
    make, wanted = HEADS[head]
    score = make(torch.eye(num), similarity, torch.randn(num, num))
    scored = []
    monkeypatch.setattr(
        reranking,
        "match_scores",
        lambda *args: scored.append(args[2]) or score[args[2], args[3]],
    )
    before = shares_of_queries(similarity, score, 0)
    shares = {k: shares_of_queries(similarity, score, k) for k in (16, 8, 4, 2)}
    surely = [k for k in shares if least_gain(shares[k], before) > 0]
    k = max(surely, key=lambda k: (round(sum(shares[k]), 9), -k), default=0)
    assert k == wanted or wanted is None
    result = search_gallery(task, index, 16, selects=True)
    numbers = result.numbers
    assert len(scored) == 1  # once for all numbers
    assert numbers["rerank_k"] == k
    assert {k: numbers[f"r_mean_k{k}"] for k in shares} == pytest.approx(
        {k: sum(shares[k]) for k in shares}
    )
    assert numbers["r_mean"] == pytest.approx(sum(shares.get(k, before)))
    assert numbers["r_mean_itc_only"] == pytest.approx(sum(before))
    forced = search_gallery(task, index, k)
    assert forced.numbers == {
        name: value for name, value in numbers.items() if not name.startswith("r_mean_k")
    }
    assert hits_of(result.ranks_I) == hits_of(forced.ranks_I)
    assert hits_of(result.ranks_T) == hits_of(forced.ranks_T)
    for each in (2, 16):
        assert search_gallery(task, index, each).numbers["r_mean"] == pytest.approx(
            sum(shares[each])
        )
        assert search_gallery(task, index, each).numbers["rerank_k"] == each
    assert evaluator_of(task).selected_settings(numbers) == replace(task.settings, rerank=k)
    (remark,) = evaluator_of(task).warnings(numbers)
    assert remark.startswith(
        f"of 16, 8, 4, 2 or no candidates to re-rank, validation chose {f'the best {k} (' if k else 'none'}"
    )


def test_without_a_matching_head_there_is_nothing_to_choose():
    task = retrieval(itm_weight=0.0, rerank=0)
    numbers = search_gallery(task, scored_index(20)[0], 0, selects=True).numbers
    assert not [name for name in numbers if "rerank" in name or "itc_only" in name]
    assert evaluator_of(task).selected_settings(numbers) == task.settings


@torch.no_grad()
@pytest.mark.parametrize("rerank", [0, 4])
def test_classes_false_texts_and_merged_words_equal_loops(rerank):
    """On phantoms, whose reports recur and come with false ones; each image and text alone."""
    task = retrieval(rerank=rerank)
    source = PhantomPairs(split="test", image_size=64, num_rows=30, seed=2)
    dataset = SearchSet([source], task.config, TOKENIZER)
    numbers = numbers_of(task, dataset, 7)
    rows = [source[row] for row in range(30)]
    pixels = [dataset[(0, 0, place)].image[None].float() / 127.5 - 1 for place in range(30)]
    rows = [rows[image.row] for image in dataset.images]

    def text(words: str) -> Tensor:
        return torch.from_numpy(dataset.tokens(words))[None]

    said = [
        [row.captions[0], *source.distractors(place)]
        for row, place in zip(rows, (image.row for image in dataset.images), strict=True)
    ]
    distinct = sorted({words for each in said for words in each})
    images, texts = features(task, pixels, map(text, distinct))
    feature_of = dict(zip(distinct, texts, strict=True))
    scores = [
        [round(float(image @ feature_of[row.captions[0]]), 5) for row in rows] for image in images
    ]
    for way, keys in (("tr", scores), ("ir", [*zip(*scores, strict=True)])):
        is_true = [[bool({*a.labels} & {*b.labels}) for b in rows] for a in rows]
        for k in (1, 2, 5, 10):
            shares = []
            for row, right in zip(keys, is_true, strict=True):
                kth = sorted(row, reverse=True)[k - 1]
                above, tied = (
                    [r for s, r in zip(row, right, strict=True) if test(s, kth)]
                    for test in (float.__gt__, float.__eq__)
                )
                shares.append((sum(above) + (k - len(above)) * sum(tied) / len(tied)) / k)
            assert numbers[f"precision_{way}{k}"] == pytest.approx(statistics.mean(shares))
        assert numbers[f"precision_{way}_chance"] == pytest.approx(
            statistics.mean(map(statistics.mean, is_true))
        )
    hits, blind = [], []  # texts are cut, so that some false ones are the true one
    for place, words in enumerate(said):
        assert len(words) == 4
        for found, shown in ((hits, place), (blind, (place + 15) % 30)):
            of_match = (
                [match_logits(task, pixels[shown], text(each))[1] for each in words]
                if rerank
                else []
            )
            keys = of_match or [float(images[shown] @ feature_of[each]) for each in words]
            found.append(slow_hit([round(key, 5) for key in keys], [0], 1))
    assert (
        numbers["tr1_hard"] == pytest.approx(statistics.mean(hits))
        and numbers["tr1_hard_chance"] == 1 / 4
    )
    assert (
        numbers["tr1_hard_wrong_image"] == pytest.approx(statistics.mean(blind)) and blind != hits
    )
    hard: Any = numbers["tr1_hard"]
    low, high = hard.versus["tr1_hard_wrong_image"]
    assert low < statistics.mean(hits) - statistics.mean(blind) < high
    words = list(dict.fromkeys(row.captions[0] for row in rows))
    assert len(words) < 30 and "no acute finding" in words
    first = [[row.captions[0] for row in rows].index(each) for each in words]
    wanted = [[words.index(row.captions[0])] for row in rows]
    hits = [
        slow_hit([row[place] for place in first], each, 1)
        for row, each in zip(scores, wanted, strict=True)
    ]
    assert numbers["tr1_merged"] == pytest.approx(statistics.mean(hits))


@pytest.mark.parametrize(
    ("sees", "says"),
    [
        (
            2,
            "tr1_hard 1.000 is better than the best of 2 baselines, looking at a wrong image (0.750",
        ),
        (
            0,
            "tr1_hard 0.750, the best of 2 baselines, looking at a wrong image 0.750: no significant difference",
        ),
    ],
)
def test_false_texts_that_words_alone_give_away_show_nothing(sees, says):
    """Each image has a text of its own and a false one; three in four own ones score more beside
    any image."""
    task, num = retrieval(rerank=0), 200
    own = sees * torch.eye(num) + (torch.arange(num) % 4 > 0)
    index = replace(
        scored_index(num)[0],
        image_Id=torch.cat([own, torch.full((num, num), 0.5)], 1),
        text_Nd=torch.eye(2 * num),
        ids=[torch.tensor([text]) for text in range(2 * num)],
        hard=[(image, num + image) for image in range(num)],
    )
    assert says in evaluator_of(task).comparison(hard_caption_accuracy(task, index, 0))


@torch.no_grad()
def test_queries_by_tag_equal_a_slow_loop():
    """The share of the first five hits whose captions have the tag, over all tags, next to the
    share of all images."""
    colors, kinds = (
        ("red", "dark blue", "green", "white"),
        ("circle", "square", "ring", "cross", "star"),
    )
    captions = [
        f"The {colors[row % 4]} {kinds[row % 7 % 5]}: no. {row}, {colors[row % 4]}"
        for row in range(60)
    ]
    rows = [replace(pairs(60)[row], captions=(caption,)) for row, caption in enumerate(captions)]
    task = retrieval(itm_weight=0.0, rerank=0)
    dataset = SearchSet([ListSource(rows)], task.config, TOKENIZER)
    tags = (*kinds, *colors, *(f"the {color} {kind}" for color in colors for kind in kinds))
    words = {
        tag: [row for row in range(60) if tag in captions[row].casefold()] for tag in sorted(tags)
    }
    expected = {tag: rows for tag, rows in words.items() if 4 <= len(rows) <= 9}
    assert len(expected) >= 2
    assert {
        dataset.texts[text]: list(images) for text, images in dataset.tagged.items()
    } == expected
    pixels = [dataset[(0, 0, row)].image[None].float() / 127.5 - 1 for row in range(60)]
    images, texts = features(
        task, pixels, [torch.from_numpy(TOKENIZER.encode(tag, 12)[0])[None] for tag in expected]
    )
    shares = [
        sum(
            row in own
            for row in sorted(range(60), key=lambda row: -(images[row] @ text).item())[:5]
        )
        / 5
        for text, own in zip(texts, expected.values(), strict=True)
    ]
    numbers = numbers_of(task, dataset, 7)
    assert numbers["tag_p5"] == pytest.approx(statistics.mean(shares))
    assert numbers["tag_p5_chance"] == pytest.approx(
        statistics.mean(len(own) / 60 for own in expected.values())
    )
    assert getattr(numbers["tag_p5"], "n", 0) == len(expected)
