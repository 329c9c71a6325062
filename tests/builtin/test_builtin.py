"""The runs and icons that the package ships, and `eve try`."""

import json
import re
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from eve_vl.builtin.icons import ICONS, unpack_icons
from eve_vl.builtin.names import FOLDER
from eve_vl.eve import Eve
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.loading import build_task
from eve_vl.run.weight_transfer import start_from
from eve_vl.search.index import Index
from eve_vl.utils.errors import UserError
from helpers.complaints import complaint
from helpers.example_builds import load_example

DRAWINGS = FOLDER / "drawings"


@pytest.fixture(scope="module")
def run() -> Eve:
    return Eve.load("builtin:drawings", "cpu")


def test_the_run_is_small_and_names_no_machine():
    files = [path for path in DRAWINGS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert ICONS.stat().st_size < 2e6
    assert b'"/' not in (DRAWINGS / "best" / "config.json").read_bytes()


def test_weights_are_float16_on_disk_and_float32_in_memory(run):
    file = (DRAWINGS / "best" / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    parameters = dict(run.task.named_parameters())
    assert {entry["dtype"] for name, entry in header.items() if name in parameters} == {"F16"}
    for name, parameter in parameters.items():
        first, last = header[name]["data_offsets"]
        halves = np.frombuffer(file[start + first : start + last], np.float16)
        expected = halves.reshape(header[name]["shape"]).astype(np.float32)
        assert parameter.dtype == torch.float32
        assert np.array_equal(parameter.detach().numpy(), expected)


def test_messages_name_the_run_builtin_drawings(run):
    """Not by its folder, nor by the run that it started from, which is not shipped."""
    assert repr(run).startswith("Eve(builtin:drawings: retrieval, step ")
    command = (
        "eve finetune questions_small --init builtin:drawings --data.train PATH --data.val held-out"
    )
    message = f"^answer: builtin:drawings is a run of task retrieval, .* answer: {command}$"
    with pytest.raises(UserError, match=message):
        _ = run.answer


def test_icons_are_unpacked_once_and_repaired(tmp_path):
    table = unpack_icons(tmp_path)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    with zipfile.ZipFile(ICONS) as archive:
        assert {"LICENSE", "pairs.jsonl", *(row["image"] for row in rows)} == {*archive.namelist()}
    assert {row["license"] for row in rows} == {"ISC"}
    assert (tmp_path / "LICENSE").read_bytes() == (FOLDER / "lucide.LICENSE").read_bytes()
    (tmp_path / "house.png").write_bytes(b"cut")
    before = (tmp_path / "heart.png").stat().st_mtime_ns
    unpack_icons(tmp_path)
    with Image.open(tmp_path / "house.png") as image:
        assert image.size == (64, 64)
    assert (tmp_path / "heart.png").stat().st_mtime_ns == before


def test_eve_try_finds_icons_and_own_images_by_text(eve, tmp_path, run, few_icons, monkeypatch):
    opened = []
    monkeypatch.setattr("eve_vl.cli.try_page.run_serve", opened.append)
    own_images = tmp_path / "mine"
    own_images.mkdir()
    with Image.open(unpack_icons(tmp_path / "icons").with_name("heart.png")) as image:
        image.convert("RGB").rotate(10, fillcolor="white").save(own_images / "one.png")
    (own_images / "two.png").write_bytes(b"broken")
    num_images = len(few_icons) + 1

    done = eve("try", "mine", "--out", "tried", "--port", "0")
    (folder,) = (tmp_path / "tried").glob("index-*")  # of these weights
    assert [args.index for args in opened] == [Path("tried") / folder.name]
    assert f"skipped: {own_images / 'two.png'}" in done.stdout
    counts = f"{num_images} images ({num_images} new), {num_images - 1} captions"
    assert f"tried/{folder.name}: {counts}" in done.stdout

    index = Index.open(folder, run)
    assert index.database.made_by.run == "builtin:drawings"
    hearts = {hit.name for hit in index.search("heart", top=2, by="vectors")}
    assert hearts == {f"{tmp_path}/tried/icons/heart.png", f"{own_images}/one.png"}
    all_hits = index.search_each(few_icons, [None] * len(few_icons))
    assert not any(hits.nothing_fits for hits in all_hits)
    is_right = [text in hits[0].captions for text, hits in zip(few_icons, all_hits, strict=True)]
    assert np.mean(is_right) > 0.5  # an untrained run finds one of a hundred
    nonsense = ["xqzvbrt flurb", "zorkule", "bnmwq", "pflim gratzu", "qwrtplk"]
    assert all(hits.nothing_fits for hits in index.search_each(nonsense, [None] * 5))
    assert "heart.png" in eve("search", folder, "heart").stdout  # by the run that the index names


def test_sources_that_eve_try_cannot_read_are_reported(eve, tmp_path, few_icons):
    line = complaint(eve("try", "vanished", "--out", "tried", "--port", "0"))
    assert "no such file or folder: " in line
    (tmp_path / "notes.md").write_text("none")
    line = complaint(eve("try", "notes.md", "--out", "tried", "--port", "0"))
    assert "notes.md: cannot tell its format by its name" in line


def test_queries_of_the_readme_find_their_icon_first(tmp_path, run):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (sentence,) = re.findall(r"Type\s+(.*?), or drop", readme, re.DOTALL)
    queries = re.findall(r"\*(.+?)\*", sentence)
    assert len(queries) == 3
    icons = run.encode_image(unpack_icons(tmp_path).parent)
    best = (run.encode_text(queries) @ icons.T).argmax(1)
    assert [Path(icons.names[row]).stem.replace("-", " ") for row in best] == queries


def test_a_taken_port_is_refused_before_the_work(eve, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words in (("try", "--out", "tried"), ("serve", "builtin:drawings")):
            line = complaint(eve(*words, "--port", port))
            assert "cannot listen (Address already in use" in line
    assert not (tmp_path / "tried").exists()


def test_other_runs_can_start_from_it(run):
    """Also with another image size, for which float16 positions are resized."""
    larger = replace(run.run.config.input, image_size=96)
    init = Path("builtin:drawings")
    start = replace(
        run.run.config,
        init=init,
        scratch=False,
        input=larger,
    )
    config = with_absolute_paths(start)
    assert str(config.init) == "builtin:drawings"
    task = build_task(config, run.tokenizer)
    new, note = start_from(config, task)
    assert not new
    assert "positions resized from 4 to 9 patches" in note
    name = "encoder.image.cls"
    assert torch.equal(task.get_parameter(name), run.task.get_parameter(name))


def test_the_script_ships_the_run_again(tmp_path):
    """Shipping it from itself gives the same files."""
    ship = load_example("drawings", "ship")
    out = tmp_path / "drawings"
    out.mkdir()
    (out / "README.md").write_text("stays")
    ship.ship_run(Path("builtin:drawings"), out)
    for path in (DRAWINGS / "config.json", DRAWINGS / "metrics.json", *DRAWINGS.glob("best/*")):
        assert (out / path.relative_to(DRAWINGS)).read_bytes() == path.read_bytes()
    assert (out / "README.md").read_text() == "stays"


def test_the_script_ships_the_icons_again(tmp_path):
    ship = load_example("drawings", "ship")
    (tmp_path / "lucide.LICENSE").write_bytes((FOLDER / "lucide.LICENSE").read_bytes())
    shipped = read_zip(ICONS)
    rows = []
    for line in shipped["pairs.jsonl"].splitlines():
        row = json.loads(line)
        rows.append(row | {"image": shipped[row["image"]]})
    of_another_set = rows[0] | {"caption": "other", "set": "tabler"}
    table = pyarrow.Table.from_pylist([*reversed(rows), of_another_set])
    parquet.write_table(table, tmp_path / "test_sets.parquet")
    ship.ship_icons(tmp_path / "test_sets.parquet", tmp_path / "lucide.zip")
    assert read_zip(tmp_path / "lucide.zip") == shipped


def read_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_unknown_names(eve):
    line = complaint(eve("inspect", "builtin:drawing"))
    assert "no run 'builtin:drawing'; did you mean 'builtin:drawings'?" in line
    line = complaint(eve("evaluate", "retrieval", "builtin:drawings"))
    assert "name other data with --data PATH, or generated scenes with --data scenes:test" in line
    line = complaint(eve("features", "drawings", "--texts", "home"))
    assert "drawings: no such run folder; did you mean 'builtin:drawings'?" in line


def test_nothing_is_written_into_the_package(eve, tmp_path):
    before = changes_of_package()
    for words in (
        ("pretrain", "tiny", "--out", "builtin:drawings"),
        ("pretrain", "tiny", "--out", DRAWINGS),
        ("report", "builtin:drawings"),
    ):
        assert "nothing is written" in eve(*words).stderr
    assert changes_of_package() == before
    assert not list(tmp_path.iterdir())


def changes_of_package() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*.[!p]*")}
