"""Computations on whole matrices of parameters that are in shards, as Muon needs them.

Letters: M matrices, O rows, I columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from eve_vl.train.processes import exchange
from eve_vl.train.shard import local_shard, shard_group, sharded_as

Compute = Callable[[Tensor], Tensor]


@dataclass
class Piece:
    """The values of a parameter's shard, with the parameter that they belong to."""

    parameter: DTensor
    values: Tensor  # flat

    @property
    def shard(self) -> Tensor:
        """This process's shard of the parameter."""
        return local_shard(self.parameter)

    @property
    def axis(self) -> int:
        """The axis that is divided among processes."""
        return cast(Shard, self.parameter.placements[-1]).dim


@torch.no_grad()
def compute_on_matrices(
    compute: Compute, parameters: Sequence[Tensor], values: Tensor, shape: tuple[int, int]
) -> Sequence[Tensor]:
    """Return `compute` of the matrices (M, O, I) of each parameter, flat.

    values: flat, the matrices of each parameter; with shards, this process's part. A process
    computes shards of complete matrices itself. Each other parameter is computed by one process:
    one exchange hands out the shards, another hands back the results. If no axis of a parameter
    divides evenly, every process computes the whole.
    """
    sizes = [local_shard(parameter).numel() for parameter in parameters]
    if not isinstance(parameters[0], DTensor):
        return compute(values.view(-1, *shape)).flatten().split(sizes)

    num_shards = dist.get_world_size(shard_group(parameters[0]))
    complete: dict[int, Piece] = {}
    uneven: dict[int, Piece] = {}
    divided: dict[int, Piece] = {}
    for index, (parameter, piece_values) in enumerate(
        zip(cast(Sequence[DTensor], parameters), values.split(sizes), strict=True)
    ):
        piece = Piece(parameter, piece_values)
        if parameter.shape[piece.axis] % num_shards != 0:
            uneven[index] = piece
        elif _holds_complete_matrices(piece.shard, shape):
            complete[index] = piece
        else:
            divided[index] = piece

    # in this order on all processes, because the last two exchange values
    results = _compute_whole(compute, uneven, shape)
    results |= _compute_locally(compute, complete, shape)
    results |= _compute_in_turns(compute, divided, shape)
    return [results[index] for index in range(len(parameters))]


def _holds_complete_matrices(shard: Tensor, shape: tuple[int, int]) -> bool:
    rows, columns = shape
    return shard.shape[-1] == columns and shard.shape[-2] % rows == 0


def _compute_whole(
    compute: Compute, pieces: dict[int, Piece], shape: tuple[int, int]
) -> dict[int, Tensor]:
    """Compute the whole of each parameter in every process, and return this process's part."""
    results = {}
    for index, piece in pieces.items():
        parameter = piece.parameter
        whole = DTensor.from_local(
            piece.values.view_as(piece.shard),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        ).full_tensor()
        result = compute(whole.view(-1, *shape)).reshape(whole.shape)
        results[index] = local_shard(sharded_as(result, parameter)).flatten()
    return results


def _compute_locally(
    compute: Compute, pieces: dict[int, Piece], shape: tuple[int, int]
) -> dict[int, Tensor]:
    """Compute shards of complete matrices in one batch."""
    if not pieces:
        return {}
    values = [piece.values for piece in pieces.values()]
    results = compute(torch.cat(values).view(-1, *shape)).flatten()
    return dict(zip(pieces, results.split([len(value) for value in values]), strict=True))


def _compute_in_turns(
    compute: Compute, pieces: dict[int, Piece], shape: tuple[int, int]
) -> dict[int, Tensor]:
    """Compute each parameter in one process, which gathers its shards and hands back the parts.

    All pieces of a parameter have one size.
    """
    if not pieces:
        return {}
    group = shard_group(next(iter(pieces.values())).parameter)
    num_shards = dist.get_world_size(group)
    indices = list(pieces)
    indices_by_rank = [indices[rank::num_shards] for rank in range(num_shards)]
    order = [index for rank_indices in indices_by_rank for index in rank_indices]
    sizes_by_rank = []
    for rank_indices in indices_by_rank:
        sizes_by_rank.append(sum(len(pieces[index].values) for index in rank_indices))

    rank = dist.get_rank(group)
    assigned = [pieces[index] for index in indices_by_rank[rank]]
    equal_sizes = [sizes_by_rank[rank]] * num_shards
    outgoing = torch.cat([pieces[index].values for index in order])
    received = exchange(outgoing, sizes_by_rank, equal_sizes, group).view(num_shards, -1)
    if assigned:
        received = _compute_assigned(compute, assigned, received, shape)
    returned = exchange(received.flatten(), equal_sizes, sizes_by_rank, group)
    parts = returned.split([len(pieces[index].values) for index in order])
    return dict(zip(order, parts, strict=True))


def _compute_assigned(
    compute: Compute, pieces: Sequence[Piece], received: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Return the results of this process's parameters, in the layout of `received`.

    received: a row from each process, which holds its shards of all these parameters one after
    another.
    """
    num_shards = len(received)
    wholes = []
    columns = received.split([len(piece.values) for piece in pieces], dim=1)
    for piece, values in zip(pieces, columns, strict=True):
        shards = values.reshape(num_shards, *piece.shard.shape)
        wholes.append(torch.cat([*shards], piece.axis))

    results = compute(torch.cat([whole.view(-1, *shape) for whole in wholes])).flatten()
    result_columns = []
    flat_results = results.split([whole.numel() for whole in wholes])
    for piece, whole, result in zip(pieces, wholes, flat_results, strict=True):
        shards = result.view_as(whole).chunk(num_shards, piece.axis)
        result_columns.append(torch.stack(shards).flatten(1))
    return torch.cat(result_columns, dim=1)
