"""Ways to damage a file, sampled from one `random.Random`, for the fault campaigns."""

from random import Random

from helpers.binary_mutations import (
    mutate_jpeg,
    mutate_npz,
    mutate_parquet,
    mutate_png,
    mutate_tar,
    mutate_tiff,
)
from helpers.byte_mutations import Mutation, mutate_bytes, mutate_text, numbers_at
from helpers.json_mutations import mutate_json_file, mutate_safetensors

MUTATION_BY_START: dict[bytes, Mutation] = {
    b"\x89PNG": mutate_png,
    b"\xff\xd8": mutate_jpeg,
    b"GIF8": numbers_at(6, "<HH"),
    b"BM": numbers_at(18, "<II"),
    b"II*\0": mutate_tiff,
    b"MM\0*": mutate_tiff,
    b"P": mutate_text,  # PPM; Parquet is below
    b"PAR1": mutate_parquet,
    b"RIFF": numbers_at(24, "<HH"),
    b"ustar": mutate_tar,
    b"PK": mutate_npz,
}
"""By the first bytes of a file, or those at the place where a tar has its mark."""


def mutate(rng: Random, name: str, data: bytes) -> bytes:
    """Return a damaged file: as bytes, or as its name and first bytes say that it is."""
    damaged = rng.choice(mutations_for(name, data))(rng, data)
    return mutate_bytes(rng, damaged) if rng.random() < 0.1 else damaged


def mutations_for(name: str, data: bytes) -> list[Mutation]:
    """Return the mutations of a file; one that is listed twice is sampled twice as often."""
    mutations: list[Mutation] = [mutate_bytes]
    if name.endswith((".json", ".jsonl")):
        return mutations + [mutate_json_file] * 5 + [mutate_text]
    if name.endswith((".csv", ".tsv", ".txt")):
        return mutations + [mutate_text] * 3
    if name.endswith(".safetensors"):
        return mutations + [mutate_safetensors] * 3
    plausible = []
    for start, mutation in MUTATION_BY_START.items():
        if data.startswith(start) or data[257:262] == start:
            plausible.append(mutation)
    return mutations + plausible * 2
