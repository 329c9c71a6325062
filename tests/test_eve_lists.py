"""`Eve` on lists, folders and tables against single calls."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.masked_signal.predictor import FilledText
from eve_vl.tasks.nlvr2.predictor import Judgement
from eve_vl.utils.errors import UserError
from helpers.source_files import write_jsonl
from helpers.tars import write_tar_of
from helpers.tiny_runs import TEXT, TEXTS, noise, tiny_run


def hook(module: Any, look: Callable[[Any], None]) -> None:
    """Look at the first input of each pass through a module."""
    module.register_forward_pre_hook(lambda _, inputs: look(inputs[0]))


def test_match_of_all_with_all():
    """Any sizes of lists and batches give what one by one gives; each image is embedded once."""
    eve = Eve(tiny_run("retrieval"))
    images = [noise(seed, 20 + seed, 30) for seed in range(5)]
    texts = [*TEXTS, " ".join(TEXTS), "a", TEXT, "red"]
    expected = np.array([[eve.match(image, text) for text in texts] for image in images])
    assert min(expected.std(0).min(), expected.std(1).min()) > 1e-3
    batch_sizes: list[int] = []
    hook(eve.task.encoder.image, lambda pixels: batch_sizes.append(len(pixels)))
    for batch_size in (1, 7, 10, 64):
        batch_sizes.clear()
        np.testing.assert_allclose(eve.match(images, texts, batch_size), expected, atol=1e-5)
        assert sum(batch_sizes) == 5
        assert max(batch_sizes) == max(1, min(batch_size // len(texts), 5))
    np.testing.assert_allclose(eve.match(images[0], texts), expected[:1], atol=1e-5)
    np.testing.assert_allclose(eve.match(iter(images), texts[0]), expected[:, :1], atol=1e-5)
    assert eve.match([images[0]], [texts[0]]).shape == (1, 1)
    assert eve.match([], []).shape == (0, 0)
    assert eve.match(images, []).shape == (5, 0)
    assert eve.match([], texts).shape == (0, 7)
    with pytest.raises(UserError, match="batch_size 0 is not positive"):
        eve.match(images, texts, 0)


@pytest.mark.parametrize(
    ("call", "run", "task"),
    [
        ("answer", "vqa", None),
        ("verify", "nlvr2", None),
        ("fill_mask", "masked", None),
        ("classify", "masked", ClassificationConfig(inputs="both")),
    ],
)
def test_a_list_gives_a_list_and_neighbours_do_not_matter(call, run, task):
    """One forward pass a batch, the same numbers as one by one; what is given alone goes with every
    row."""
    images = [noise(seed, 20 + seed, 30) for seed in range(5)]
    texts = [
        "a [MASK] circle",
        "[MASK] two [MASK]",
        "a b c d e [MASK]",
        "[MASK]",
        "on gray, [MASK] [MASK] [MASK]",
    ]
    eve = Eve(tiny_run(run, task=task))
    columns = [images, images[::-1], texts] if call == "verify" else [images, texts]
    method = getattr(eve, call)
    passes = []
    hook(eve.task.encoder.text, lambda _: passes.append(1))
    expected = [numbers(method(*row)) for row in zip(*columns, strict=True)]
    assert all(row != pytest.approx(expected[0], abs=1e-4) for row in expected[1:])
    for batch_size, num_passes in (
        (2, 3),
        (5, 1),
        (64, 1),
    ):
        passes.clear()
        results = method(*columns, batch_size=batch_size)
        assert len(passes) == num_passes
        for row, expected_row in zip(results, expected, strict=True):
            assert numbers(row) == pytest.approx(expected_row, abs=1e-5)

    other_columns = columns[1:]
    with_first_image = method(images[0], *other_columns)
    for result, row in zip(with_first_image, zip(*other_columns, strict=True), strict=True):
        assert numbers(result) == pytest.approx(numbers(method(images[0], *row)), abs=1e-5)
    assert method(*([] for _ in columns)) == []
    message = "lists of 2 and 5 given: give lists of equal length, or one for all"
    with pytest.raises(UserError, match=message):
        method(*columns[:-1], texts[:2])
    with pytest.raises(UserError, match="text 1: got int, expected one text"):
        method(*columns[:-1], ["[MASK]", 2])


def numbers(result: Any) -> dict[str, float]:
    """Return the probabilities that a call gives for one row, by what they are of."""
    if isinstance(result, Judgement):
        return {"true": result.probability}
    if isinstance(result, FilledText):
        probabilities = {}
        for place, guesses in enumerate(result.guesses):
            for guess in guesses:
                probabilities[f"{place} {guess.text}"] = guess.probability
        return probabilities
    name = "answer" if hasattr(result[0], "answer") else "label"
    return {getattr(answer, name): answer.probability for answer in result}


# Folders, tables and the like


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of several sizes, one of them 39 × 7, in a folder with a broken one, and tables
    of them."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    names = ["a.png", "b.png", "inner/c.png", "inner/d.png", "inner/thin.png"]
    for number, name in enumerate(names):
        size = (39, 7) if "thin" in name else (20 + number, 30)
        Image.fromarray(noise(number, *size)).save(folder / name)
    rows = []
    for name in names:
        path = f"photos/{name}"
        rows.append(
            {
                "photo": path,
                "image": path,
                "caption": [name, f"a {name}"],
            }
        )
    rows.insert(
        2,
        {
            "photo": "photos/gone.png",
            "image": "photos/gone.png",
            "caption": ["gone"],
        },
    )
    write_jsonl(tmp_path / "table.jsonl", [*rows, "{"])
    lines = [f"{row['image']},{row['caption'][0]}" for row in rows]
    (tmp_path / "table.csv").write_text("\n".join(["image,caption", *lines]))
    members = {}
    for number, name in enumerate(names):
        members[f"{number:04}.png"] = (folder / name).read_bytes()
        members[f"{number:04}.txt"] = name.encode()
    write_tar_of(tmp_path / "shard.tar", members)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


def test_folders_and_tables_are_encoded_and_broken_rows_skipped(photos, monkeypatch):
    eve = Eve(tiny_run("retrieval"))
    root = photos.parent
    paths = sorted(photos.rglob("*.png"))
    paths.remove(photos / "broken.png")
    paths.sort(key=lambda path: (path.parent != photos, path))
    expected = eve.encode_image(paths)
    assert expected.names == tuple(map(str, paths))
    assert not expected.skipped
    monkeypatch.chdir(root)
    for source, skipped in (
        ("photos", ["broken.png"]),
        (Path("photos"), ["broken.png"]),
        (root / "table.jsonl", ["table.jsonl:3", "table.jsonl:7"]),
        ("table.csv", ["table.csv:4"]),
        ("shard.tar", []),
        (iter(["table.csv"]), ["table.csv:4"]),
        ([photos / "a.png", photos / "b.png", photos / "inner"], []),
    ):
        features = eve.encode_image(source, batch_size=2)
        np.testing.assert_allclose(features, expected, atol=1e-5)
        assert [error.where for error in features.skipped] == skipped
        assert features.names == expected.names or source == "shard.tar"
    assert len(set(eve.encode_image("shard.tar").names)) == 5
    features = eve.encode_image("table.jsonl", image_column="photo")
    np.testing.assert_allclose(features, expected, atol=1e-5)
    with pytest.raises(UserError, match="has no column 'foto'"):
        eve.encode_image("table.jsonl", image_column="foto")
    with pytest.raises(UserError, match=r"broken\.png: cannot decode"):
        eve.encode_image([photos / "broken.png"])
    with pytest.raises(UserError, match=r"no such file or folder: .*nothing\.csv"):
        eve.encode_image("nothing.csv")


def test_texts_of_files_and_tables(photos, tmp_path):
    eve = Eve(tiny_run("retrieval"))
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    for source in (
        tmp_path / "lines.txt",
        [tmp_path / "lines.txt"],
        iter(TEXTS),
    ):
        features = eve.encode_text(source)
        np.testing.assert_allclose(features, eve.encode_text(list(TEXTS)), atol=1e-5)
        assert features.names == TEXTS
    features = eve.encode_text(tmp_path / "table.jsonl", batch_size=3)
    names = ["a.png", "b.png", "gone", "inner/c.png", "inner/d.png", "inner/thin.png"]
    second_captions = [f"a {name}" for name in names if name != "gone"]
    assert sorted(features.names) == sorted([*names, *second_captions])
    np.testing.assert_allclose(features, eve.encode_text(list(features.names)), atol=1e-5)
    assert [error.where for error in features.skipped] == ["table.jsonl:7"]
    assert eve.encode_text(tmp_path / "table.csv", text_column="caption").names == tuple(names)
    path = str(tmp_path / "lines.txt")
    assert eve.encode_text(path).names == (path,)  # a text like any other


def test_arrays_and_iterators_of_images():
    eve = Eve(tiny_run("retrieval"))
    array = np.stack([noise(seed) for seed in range(3)])
    expected = np.concatenate([eve.encode_image(image) for image in array])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    arrays = (array, tensor, array / 255, tensor / 255)
    for images in (*arrays, iter(array), (image for image in array), tuple(array)):
        np.testing.assert_allclose(eve.encode_image(images), expected, atol=1e-5)
    assert eve.encode_image(array[0]).names == ("image",)
    assert eve.encode_image(array).names == ("image 0", "image 1", "image 2")
    assert eve.encode_image(array[:0]).shape == (0, 8)
    message = r"^image 0: array of shape \(3, 16, 16\), expected \(height, width, 3\)"
    with pytest.raises(UserError, match=message):
        eve.encode_image(array.transpose(0, 3, 1, 2))
    message = r"^image 0: tensor of shape \(16, 16, 3\), expected \(3, height, width\)"
    with pytest.raises(UserError, match=message):
        eve.encode_image(torch.from_numpy(array))


def test_no_more_than_a_batch_is_read_ahead():
    eve = Eve(tiny_run("retrieval"))
    read = [0]
    batches = []

    def endless() -> Iterator[np.ndarray]:
        for seed in range(10):
            read[0] += 1
            yield noise(seed)

    hook(eve.task.encoder.image, lambda images: batches.append((len(images), read[0])))
    eve.encode_image(endless(), batch_size=4)
    assert batches == [
        (4, 4),
        (4, 8),
        (2, 10),
    ]


def test_what_is_computed_from_features_is_a_plain_array():
    eve = Eve(tiny_run("retrieval"))
    photos = eve.encode_image([noise(seed) for seed in range(4)])
    text = eve.encode_text(TEXT)
    scores = photos @ text[0]
    assert type(scores) is np.ndarray
    assert type(photos.mean()) is not type(photos)
    assert photos.names[scores.argmax()].startswith("image ")
    assert getattr(photos[:2], "names") == ()  # noqa: B009
