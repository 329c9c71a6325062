"""The gallery of a search: what is encoded, where it lies, and rows that are left out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.loader import eval_loader
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.search_set import SearchImages, SearchSet
from eve_vl.utils.errors import UserError
from helpers.counted_rows import counted_rows
from helpers.tiny_rows import ListSource, pairs
from helpers.tiny_tasks import (
    TOKENIZER,
    build,
    config_of,
    eval_set,
    gallery_of,
    numbers_of,
    retrieval,
    searchable,
)


class DeviceTensor(Tensor):
    """A tensor that tells copies on the host from itself, without a GPU."""

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a plain tensor."""
        return self.as_subclass(Tensor).clone()


@torch.no_grad()
def test_pixels_lie_on_the_host():
    task = retrieval()
    batches = []
    for batch in eval_loader(
        eval_set(task.config),
        batch_size=4,
        rank=0,
        world=1,
    ):
        if isinstance(batch, SearchImages):
            images = batch.images_BCHW.as_subclass(DeviceTensor)
            batches.append(replace(batch, images_BCHW=images))
        else:
            batches.append(batch)
    gallery = gather_gallery(task, batches)
    for pixels in gallery.pixels.values():
        assert type(pixels) is Tensor
        assert pixels.dtype == torch.uint8


@torch.no_grad()
def test_each_image_and_each_text_is_encoded_once():
    task = retrieval()
    dataset = eval_set(task.config)
    with counted_rows(task.encoder, "image", "text") as num_rows:
        gallery = gallery_of(task, dataset)
    assert num_rows == {"image": 9, "text": len(dataset.texts)}
    assert [ids.tolist() for ids in gallery.ids] == [ids.tolist() for ids in dataset.ids]
    assert sorted(gallery.pixels) == list(range(9))
    torch.testing.assert_close(gallery.image_Id.norm(dim=1), torch.ones(9))


def search_set(task: Any, rows: list[ImageText | None]) -> SearchSet:
    return SearchSet([ListSource(rows)], task.config, TOKENIZER)


@torch.no_grad()
def test_a_query_without_a_match_is_left_out():
    """An image whose only text is cut away; that text is no candidate of any other image."""
    task = retrieval()
    rows = []
    for row, pair in enumerate(pairs(3)):
        rows.append(replace(pair, captions=(f"text {row}",)))
    dataset = search_set(task, rows)
    dataset.captions_of[1] = ()
    numbers = numbers_of(task, dataset, 3)
    assert numbers["num_queries_without_match"] == 1
    assert numbers["num_texts"] == 2
    assert numbers["num_captions_skipped"] == 1
    assert numbers["texts_per_image"] == pytest.approx(2 / 3)


def with_broken_images(rows: list[ImageText], unreadable: tuple[int, ...]) -> list[Any]:
    """Return rows of which some have bytes that are no image; rows 0, 3 and 4 show one image."""
    broken_rows = list(rows)
    for index in unreadable:
        data = b"junk %d" % index
        if index in (0, 3, 4):
            data = b"shared"
        broken_rows[index] = replace(rows[index], image=ImageBytes(data=data))
    return broken_rows


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "unreadable"),
    [
        ("retrieval", (5,)),
        ("retrieval", (0, 3, 4)),
        ("retrieval_merged", (1, 8)),
    ],
)
def test_unreadable_images_change_numbers_as_if_their_rows_were_missing(name, unreadable):
    """Row 7 has a caption of row 1."""
    task = build(config_of(name))
    rows = list(searchable())
    readable_rows: list[Any] = [row for index, row in enumerate(rows) if index not in unreadable]
    expected = numbers_of(task, search_set(task, readable_rows), 4)
    broken_rows = with_broken_images(rows, unreadable)
    numbers = numbers_of(task, search_set(task, broken_rows), 4, skipped=[])
    assert numbers.pop("num_captions_skipped") > 0
    assert numbers == expected


def test_a_search_without_any_readable_image_is_refused():
    task = retrieval()
    rows = with_broken_images(list(searchable()), tuple(range(11)))
    message = "none of the images to search among can be used; repair such rows"
    with pytest.raises(UserError, match=message):
        numbers_of(task, search_set(task, rows), 4, skipped=[])
