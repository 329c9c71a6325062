"""The garbage collector is paused for a block and is afterwards as it was before."""

import gc

import pytest

from eve_vl.utils.memory import garbage_collection_paused


@pytest.mark.parametrize(
    ("is_enabled", "is_frozen"),
    [
        (True, False),
        (False, True),
    ],
)
def test_garbage_collector_is_as_before_the_pause(is_enabled: bool, is_frozen: bool):
    gc.unfreeze()
    if is_frozen:
        gc.freeze()
    frozen_before = gc.get_freeze_count()
    if not is_enabled:
        gc.disable()
    try:
        with garbage_collection_paused():
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
        assert gc.isenabled() is is_enabled
        assert (gc.get_freeze_count() > 0) is is_frozen
        assert gc.get_freeze_count() <= frozen_before
    finally:
        gc.enable()
        gc.freeze()  # as tests/conftest.py
