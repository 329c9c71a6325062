"""Checkpoints of several processes: shares, background, another number of processes, torch's own format, a full disk."""

import multiprocessing
import resource
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from eve_vl.train import checkpoint_files, checkpoint_folders, checkpoint_writer, processes
from eve_vl.train.checkpoint_writer import CheckpointWriter
from eve_vl.train.shard import gathered
from eve_vl.train.tensor_shares import read_shares
from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.file_io import delete_temporary
from helpers import shares

CONTEXT = multiprocessing.get_context(
    "fork"
)  # imports take seconds; these processes start no threads before
SHAPES = {
    "experts": (8, 4, 6),
    "uneven": (7, 3),
    "bias": (5,),
    "few": (2, 9),
    "step": (),
    "none": (0, 3),
}


def whole_tensors(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    return tensors | {
        "count": torch.tensor([2**40 + seed, 3]),
        "half": torch.randn(9, generator=rng).bfloat16(),
    }


def in_layout(layout: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as DDP has them, as FSDP2 on the first axis or the last, or as HSDP."""
    world = processes.world_size()
    if layout == "whole":
        return {name: tensor.clone() for name, tensor in tensors.items()}
    mesh = init_device_mesh("cpu", (2, world // 2) if layout == "machines" else (world,))

    def sharded(tensor: Tensor) -> Tensor:
        axis = tensor.ndim - 1 if layout == "last axis" else 0
        return (
            distribute_tensor(tensor, mesh, [Replicate()] * (mesh.ndim - 1) + [Shard(axis)])
            if tensor.ndim
            else tensor
        )

    return {name: sharded(tensor.clone()) for name, tensor in tensors.items()}


def equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    found = {
        name: each.full_tensor() if isinstance(each, DTensor) else each
        for name, each in tensors.items()
    }
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], each) for name, each in expected.items()
    )


def in_processes(world: int, work: Callable[[Path], object], folder: Path) -> list[str]:
    """What each of several gloo processes returns."""
    store = folder / f"store_{work.__name__}_{world}"

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world
            )
            found = str(work(folder))
            processes.barrier()
        except BaseException:
            found = traceback.format_exc()
        (folder / f"{work.__name__}_{rank}.txt").write_text(found)

    started = [CONTEXT.Process(target=run, args=(rank,)) for rank in range(world)]
    for each in started:
        each.start()
    for each in started:
        each.join(60)
    return [(folder / f"{work.__name__}_{rank}.txt").read_text() for rank in range(world)]


def writer_of(folder: Path) -> CheckpointWriter:
    return CheckpointWriter(folder, keep=2, in_background=processes.world_size() > 1)


def finish_if_written(writer: CheckpointWriter) -> None:
    """Put a checkpoint in place as the training loop does after each step."""
    if not processes.any_process(writer.is_writing):
        writer.finish()


LAYOUTS = ("whole", "first axis", "last axis", "machines")
KILLED: list[
    CheckpointWriter
] = []  # until the process ends: a writer that is collected before deletes its folder


def save_all(folder: Path) -> str:
    """Save every layout; change tensors while they are written; fail to write; die while writing."""
    for layout in LAYOUTS:
        tensors, writer = in_layout(layout, whole_tensors(0)), writer_of(folder / layout)
        allowed, write_files = threading.Event(), checkpoint_writer.write_files

        def slowly(*args, allowed=allowed, write_files=write_files):
            assert allowed.wait(60)
            return write_files(*args)

        with mock.patch.object(checkpoint_writer, "write_files", slowly):
            model = gathered(tensors)
            assert bool(model) == (processes.rank() == 0)
            own = {"model": writer.copied(model)} if model else {}
            writer.start(
                own,
                {"optimizer": tensors, "live": {"a": tensors["bias"]}},
                {"a.txt": "a"},
                {"step": 4},
            )
            for tensor in (*tensors.values(), *model.values()):
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
            finish_if_written(writer)
            assert not (folder / layout / "checkpoints/step_00000004").exists()
            allowed.set()
            while not (folder / layout / "checkpoints/step_00000004").exists():
                finish_if_written(writer)  # in as many rounds as others
                time.sleep(0.01)
        finish_if_written(writer)
        writer.finish()
    own = in_layout(
        "first axis", {name: each for name, each in whole_tensors(0).items() if each.ndim}
    )
    save(own, storage_writer=HuggingFaceStorageWriter(str(folder / "torch"), save_distributed=True))
    writer = writer_of(folder / "whole")
    if processes.rank() == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        writer.start({}, {"optimizer": whole_tensors(1)}, {}, {"step": 5})
        writer.finish()
        said = "nothing"
    except SharedError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    KILLED.append(writer_of(folder / "killed"))
    KILLED[0].start({}, {"optimizer": whole_tensors(1)}, {}, {"step": 6})
    return said


def load_all(folder: Path) -> str:
    """Read all that was saved into all layouts."""
    expected, wrong = whole_tensors(0), []
    for saved in (*LAYOUTS, "old", "torch"):
        there = folder / (
            saved if saved in ("old", "torch") else f"{saved}/checkpoints/step_00000004"
        )
        for layout in LAYOUTS if processes.world_size() > 1 else LAYOUTS[:1]:
            names = [
                name
                for name in expected
                if saved != "torch" or (expected[name].ndim and expected[name].numel())
            ]
            tensors = in_layout(
                layout, {name: torch.full_like(expected[name], 7) for name in names}
            )
            read_shares(tensors, there, "optimizer")
            if not equal(tensors, {name: expected[name] for name in names}):
                wrong.append((saved, layout))
    return str(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What four processes wrote, and what each of them said."""
    folder = tmp_path_factory.mktemp("four")
    said = in_processes(4, save_all, folder)
    (folder / "said.txt").write_text("\n".join(said))
    (folder / "old").mkdir()
    save_file(whole_tensors(0), folder / "old/optimizer.safetensors")
    for number, path in enumerate(sorted((folder / "torch").iterdir())):
        path.rename(folder / f"torch/optimizer_{number}.safetensors")
    return folder


def test_four_processes_save_and_two_or_one_resume_with_the_same_bits(folder: Path):
    """From shards of any axis into shards of any other, and from one file of an earlier version or torch's own files."""
    assert in_processes(2, load_all, folder) == ["[]"] * 2
    assert load_all(folder) == "[]"
    filled = {name: each for name, each in whole_tensors(0).items() if each.numel()}
    for layout in LAYOUTS:
        there = folder / layout / "checkpoints/step_00000004"
        written = [load_file(there / f"optimizer_{rank}.safetensors") for rank in range(4)]
        sizes = [sum(each.nbytes for each in share.values()) for share in written]
        assert sum(sizes) == sum(each.nbytes for each in whole_tensors(0).values())  # once
        assert layout == "last axis" or max(sizes) < 1.7 * min(
            sizes
        )  # an axis of 6 gives 2, 2, 2 and nothing
        assert equal(load_file(there / "model.safetensors"), whole_tensors(0))
        together = shares.whole_tensors(there)
        assert equal({name: together[f"optimizer.{name}"] for name in filled}, filled)
        assert {*checkpoint_files.verify(there)["sha256"]} == {
            path.name for path in there.iterdir()
        } - {"state.json"}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torchs_own_reader_reads_the_shares(folder: Path, layout, tmp_path: Path):
    for path in (folder / layout / "checkpoints/step_00000004").glob("optimizer_*"):
        (tmp_path / path.name).symlink_to(path)
    found = {
        name: torch.full_like(each, 7) for name, each in whole_tensors(0).items() if each.numel()
    }
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)))
    assert equal(found, {name: each for name, each in whole_tensors(0).items() if each.numel()})


def test_a_full_disk_of_one_process_is_one_line_in_all_and_the_last_checkpoint_stays(folder: Path):
    (said, *others) = (folder / "said.txt").read_text().splitlines()
    assert others == [said] * 3
    path = folder / "whole/checkpoints/step_00000005"
    assert (
        said.startswith(f"{path}: cannot be written (")
        and said.endswith(checkpoint_files.ADVICE)
        and "File too large" in said
    )
    assert [each.name for each in path.parent.iterdir()] == ["step_00000004"]


def test_a_save_that_was_killed_leaves_nothing_that_counts(folder: Path):
    (left,) = (folder / "killed/checkpoints").iterdir()
    assert not checkpoint_folders.checkpoint_folders(folder / "killed") and not list(
        left.rglob("state.json")
    )
    delete_temporary(left.parent)
    assert not list(left.parent.iterdir())


def test_shares_that_are_lost_or_misplaced_are_named(folder: Path, tmp_path: Path):
    for rank in (0, 1, 3):
        (tmp_path / f"optimizer_{rank}.safetensors").symlink_to(
            folder / f"whole/checkpoints/step_00000004/optimizer_{rank}.safetensors"
        )
    with pytest.raises(UserError, match=r"^optimizer.safetensors: does not hold all of experts$"):
        read_shares(whole_tensors(1), tmp_path, "optimizer")
    for text in ("[]", "{", '{"bias": 3}', '{"bias": {}}', '{"bias": {"saved_offsets": [null]}}'):
        save_file(
            {"bias": torch.ones(5)},
            tmp_path / "optimizer_0.safetensors",
            {"DCP_SHARDING_INFO": text},
        )
        with pytest.raises(UserError, match=r"optimizer_0.safetensors: cannot be read \("):
            read_shares({"bias": torch.ones(5)}, tmp_path, "optimizer")
