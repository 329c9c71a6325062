"""Atomic files and folders: crashes between any two steps, readers meanwhile, a full disk."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import (
    atomic_file,
    atomic_folder,
    delete_temporary,
    recover,
    reporting_write_errors,
    write_file,
)


class Killed(BaseException):
    """Stands in for the end of the process."""


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def replace(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text(text)
        (temporary / text).write_text("")


def test_file_is_replaced_or_stays_as_it_is(tmp_path: Path):
    path = tmp_path / "file"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "\ud800")
    with pytest.raises(Killed), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise Killed
    assert content(tmp_path) == {"file": "old"}
    write_file(path, b"new")
    assert content(tmp_path) == {"file": "new"}
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "nowhere/file", "text")


def test_planted_link_is_not_followed(tmp_path: Path):
    """A temporary file lies where no other user of a shared folder can put one."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".file.tmp").symlink_to("victim")
    with atomic_file(tmp_path / "file") as temporary:
        assert temporary.parent.stat().st_mode & 0o777 == 0o700
        assert not temporary.exists()
        temporary.write_text("page")
    (tmp_path / ".file.tmp").unlink()
    assert content(tmp_path) == {"victim": "precious", "file": "page"}
    assert not (tmp_path / "file").is_symlink()


def test_the_last_of_several_writers_counts(tmp_path: Path):
    path = tmp_path / "file"
    folder = tmp_path / "folder"
    with atomic_file(path) as first, atomic_file(path) as second, atomic_file(path) as third:
        for number, temporary in enumerate((third, first, second)):
            temporary.write_text(f"{number}" * 5)
    with atomic_folder(folder) as first, atomic_folder(folder) as second:
        for number, temporary in enumerate((second, first)):
            (temporary / f"{number}").write_text("")
    assert path.read_text() == "11111"
    assert content(folder) == {"1": ""}
    assert {*tmp_path.iterdir()} == {path, folder}


def test_folders_replaced_by_several_threads_are_whole(tmp_path: Path):
    folder = tmp_path / "folder"
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda text: replace(folder, text), "bcd" * 8)) == [None] * 24
    assert sorted(content(folder)) == ["a", (folder / "a").read_text()]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_is_an_error_about_the_file_to_write(tmp_path: Path):
    with pytest.raises(OSError, match="No space left") as full, atomic_file(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "file")


def test_next_writer_deletes_old_temporary_folders(tmp_path: Path):
    """That is a folder more than a day old; a younger one may belong to a writer that is alive."""
    for name in (".file.eve-old.tmp", ".file.eve-new.tmp", ".cache.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
        if "old" in name:
            os.utime(tmp_path / name, times=(0, 0))
    write_file(tmp_path / "file", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        "file",
        ".file.eve-new.tmp",
        ".cache.old.tmp",
    }
    delete_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "file",
        ".cache.old.tmp",
    }  # that is a user's own


def test_folder_is_replaced_or_stays_as_it_is(tmp_path: Path):
    folder = tmp_path / "parent/folder"
    replace(folder, "old")
    with pytest.raises(Killed), atomic_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise Killed
    assert content(folder) == {"a": "old", "old": ""}
    replace(folder, "new")
    assert content(folder) == {"a": "new", "new": ""}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("num_renames", [0, 1])
def test_crash_between_the_renames_leaves_the_old_folder(tmp_path: Path, monkeypatch, num_renames):
    folder = tmp_path / "folder"
    rename = Path.rename
    replace(folder, "old")
    done = []

    def until_killed(self: Path, target: Path) -> Path:
        if len(done) == num_renames:
            raise Killed
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", until_killed)
    with pytest.raises(Killed):
        replace(folder, "new")
    monkeypatch.undo()
    assert folder.exists() == (num_renames == 0)
    recover(folder)
    assert content(folder) == {"a": "old", "old": ""}
    replace(folder, "newer")
    assert content(folder) == {"a": "newer", "newer": ""}
    assert list(tmp_path.iterdir()) == [folder]


def test_reader_that_recovers_the_old_folder_does_not_stop_a_writer(tmp_path: Path, monkeypatch):
    folder = tmp_path / "folder"
    rename = Path.rename
    replace(folder, "old")
    looks = []

    def with_a_reader(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if not folder.exists() and not looks:
            looks.append(recover(folder))
        return result

    monkeypatch.setattr(Path, "rename", with_a_reader)
    replace(folder, "new")
    assert looks == [None]
    assert content(folder) == {"a": "new", "new": ""}
    assert list(tmp_path.iterdir()) == [folder]


def test_permissions_are_those_of_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", "text")
        replace(tmp_path / "folder", "new")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "file": 0o640,
        "folder": 0o750,
        "a": 0o640,
        "new": 0o640,
    }


def test_write_error_is_one_line_that_names_the_path(tmp_path: Path):
    """Not about the temporary one; of errors without a reason of the system's, their own words;
    bugs stay bugs."""
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "page.html"
    with pytest.raises(UserError) as caught, reporting_write_errors(path, advice="; go elsewhere"):
        write_file(path, "text")
    assert str(caught.value) == f"{path}: cannot be written (Not a directory); go elsewhere"
    with pytest.raises(UserError) as caught, reporting_write_errors(path, KeyError):
        raise KeyError("no room")
    assert str(caught.value) == f"{path}: cannot be written ('no room')"
    with pytest.raises(KeyError), reporting_write_errors(path):
        raise KeyError("a bug")
