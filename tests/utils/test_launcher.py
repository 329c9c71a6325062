"""Which variables of a launcher count."""

import pytest

from eve_vl.utils.launcher import ProcessPlace, is_under_torchrun, process_place

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "3"}, None),
        ({"RANK": "3", "WORLD_SIZE": "4"}, None),
        ({"RANK": "3", "LOCAL_RANK": "1"}, None),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            ProcessPlace(rank=3, world_size=4, local_rank=1, local_world_size=2),
        ),
    ],
)
def test_launcher_variables_count_only_under_torchrun(environment, place, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_under_torchrun() == (place is not None)
    assert process_place() == (place or ProcessPlace())
