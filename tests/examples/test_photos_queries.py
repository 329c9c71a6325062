"""Typed queries are judged by the captions of what a search finds."""

import itertools
import re

import pytest

from eve_vl.eve import Eve
from helpers.example_builds import load_example
from helpers.indices import write_image
from helpers.source_files import write_jsonl
from helpers.tiny_runs import tiny_run, write_run

queries = load_example("photos", "queries")

CAPTIONS = [
    ["A black dog runs through the snow.", "a puppy in winter"],
    ["Two dogs play.", "snow falls on a house"],  # not in one caption
    ["a snowy hill"],
    ["a cat"],
]
SNOW_DOG = queries.TypedQuery("dog in snow", (("dog", "dogs"), ("snow", "snowy")))
BLACK_DOG = queries.TypedQuery("black dog", (("black dog",),))
ELEPHANT = queries.TypedQuery("elephants", (("elephant", "elephants"),))
ABSENT = queries.TypedQuery("zebra")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    rows = []
    for number, captions in enumerate(CAPTIONS):
        write_image(folder / f"{number}.png", number)
        rows.append({"image": f"{number}.png", "captions": captions})
    table = write_jsonl(folder / "table.jsonl", rows)
    run = write_run(tiny_run("retrieval"), folder / "run")
    return Eve.load(run).index(table, folder / "index")


def test_table_asks_for_100_present_and_20_absent_things():
    typed = queries.read_queries()
    assert len({query.text for query in typed}) == 120
    assert sum(query.is_present for query in typed) == 100
    phrases = []
    for query in typed:
        phrases += itertools.chain(*query.groups)
    assert all(re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", phrase) for phrase in phrases)


@pytest.mark.parametrize(
    ("query", "right"),
    [
        (SNOW_DOG, [True, False, False, False]),
        (BLACK_DOG, [True, False, False, False]),
        (ELEPHANT, [False] * 4),
        (ABSENT, [False] * 4),
    ],
)
def test_one_caption_must_have_a_word_of_each_group(query, right):
    assert [query.is_right(captions) for captions in CAPTIONS] == right


@pytest.mark.parametrize(("num_images", "num_right"), [(12, 0), (12, 1), (13, 2), (14, 12), (4, 1)])
def test_chance_is_the_share_of_orders_with_a_right_image_in_front(num_images, num_right):
    drawn = list(itertools.combinations(range(num_images), min(10, num_images)))
    num_hits = sum(min(numbers) < num_right for numbers in drawn)
    chance = queries.chance_of_hit(num_images, num_right)
    assert chance == pytest.approx(num_hits / len(drawn))


def test_queries_are_asked_counted_and_shown(index):
    asked = queries.ask(index, [SNOW_DOG, BLACK_DOG, ELEPHANT, ABSENT])
    assert [query.num_right for query in asked] == [1, 1, 0, 0]
    counts = {way: queries.count(asked, way) for way in queries.WAYS}
    by_words = counts["words"]
    assert (by_words.num_found, by_words.num_present) == (2, 3)
    assert by_words.num_false_alarms == 1, "no caption has elephants"
    assert (by_words.num_refused, by_words.num_absent) == (1, 1)
    # all four images are among the first ten, by chance and by vectors
    assert counts["vectors"].num_found == 2
    assert by_words.chance == 2

    html = queries.page(index, list(counts.values()), asked)
    titles = re.findall(r'<p class="caption">(.*?)</p>', html)
    assert titles == ["dog in snow", "black dog", "elephants", "zebra"]
    assert html.count("data:image/jpeg") == 4 * 2 * len(CAPTIONS)
    assert html.count('<li class="right"') == 2 * 2
    assert "<th>words</th><td>2 of 3</td><td>2.0</td><td>1 of 3</td><td>1 of 1</td>" in html
