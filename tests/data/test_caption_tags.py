"""Words and phrases of captions that people may search for."""

from eve_vl.data.caption_tags import MAX_TAGS, common_tags


def test_common_tags_are_the_words_and_phrases_of_some_captions():
    captions = [[f"red cat, animal; no {row}"] for row in range(4)]
    captions += [["a Cat on a mat"], ["cats"], ["the red car"]]
    captions += [[f"the thing {row}", "plain"] for row in range(33)]
    assert common_tags(captions) == {
        "animal": (0, 1, 2, 3),
        "no": (0, 1, 2, 3),
        "red cat": (0, 1, 2, 3),
        "cat": (0, 1, 2, 3, 4),
        "red": (0, 1, 2, 3, 6),
    }
    assert common_tags(captions[:7]) == {}  # a tag of four of seven images tells little


def test_too_many_tags_are_thinned_out_evenly():
    tags = common_tags([[f"word{row % 150:03}"] for row in range(900)])
    assert len(tags) == MAX_TAGS
    assert {len(images) for images in tags.values()} == {6}
    assert (min(tags), max(tags)) == ("word000", "word149")
