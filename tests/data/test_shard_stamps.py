"""Stamps of remote shards: what counts as another version."""

import pickle
from pathlib import Path

from eve_vl.data.remote_path import RemotePath
from eve_vl.data.remote_ranges import IndexedVersion
from eve_vl.data.shard_stamps import FileStamp, remote_stamp

PATH = Path("0.tar")


def test_servers_behind_one_address_may_tell_etags_of_their_own():
    time = "Thu, 03 Dec 2026 10:00:00 GMT"
    stamp = remote_stamp(
        PATH,
        {
            "size": 9,
            "ETag": "a",
            "Last-Modified": time,
        },
    )
    assert remote_stamp(PATH, {"size": 9, "ETag": "b", "Last-Modified": time}) == stamp
    later = time.replace("10:00:00", "10:00:01")
    assert remote_stamp(PATH, {"size": 9, "ETag": "a", "Last-Modified": later}) != stamp


def test_an_etag_counts_where_no_web_server_tells_a_time():
    for time in ({}, {"LastModified": "2026-12-03"}):  # the latter of S3
        stamp = remote_stamp(
            PATH,
            {
                "size": 9,
                "ETag": "a",
                **time,
            },
        )
        assert remote_stamp(PATH, {"size": 9, "ETag": "b", **time}) != stamp
    assert remote_stamp(PATH, {"size": 9}) == remote_stamp(PATH, {"size": 9, "ETag": None})


def test_a_loading_process_gets_the_version_that_was_indexed():
    path = RemotePath("https://host/pairs/0.tar")
    assert pickle.loads(pickle.dumps(path)).indexed is None
    path.indexed = IndexedVersion(FileStamp(9, 1))
    copy = pickle.loads(pickle.dumps(path))
    assert copy == path
    assert str(copy) == "https://host/pairs/0.tar"
    assert copy.indexed.stamp == FileStamp(9, 1)
