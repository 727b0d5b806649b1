"""A recording of several processes: one of each rank, complete by itself, and an index that names them all.

outputs/nemo/ranks.json    written last: no ranks.json, no recording of ranks
             rank_0/       a recording like any other; its index says which rank it is of
             rank_1/
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import is_regular, sha256_of, write_atomically
from nest_ssl.recording import layout as files
from nest_ssl.recording.damage import DAMAGED, RERUN, damage, read_bytes
from nest_ssl.recording.index import Ranks, canonical, sealed
from nest_ssl.recording.reader import read_index

SCHEMA = "nest-ssl-ranks/1"


def write_ranks(folder: Path, world_size: int) -> None:
    """Complete the recording of `world_size` ranks, each of which has been recorded into its place in `folder`.

    Raises:
        UserError: one of them is missing, or the index cannot be written.
    """
    ranks = []
    for rank in range(world_size):
        index = folder / files.rank_folder(rank) / files.INDEX
        if not is_regular(index):
            raise UserError(f"rank {rank} of {world_size} is not recorded", str(index.parent), "Record all again.")
        ranks.append({"folder": files.rank_folder(rank), "sha256": sha256_of(index)})
    content = sealed({"schema": SCHEMA, "world_size": world_size, "ranks": ranks})
    with write_errors(str(folder)):
        write_atomically(folder / files.RANKS, json.dumps(content, indent=1) + "\n")


def read_ranks(folder: Path) -> list[Path] | None:
    """The folders of the recordings of all ranks, by rank; None where `folder` is no recording of several.

    Raises:
        UserError: the index is damaged, or a rank is missing, of another run or of another number of processes.
    """
    path = folder / files.RANKS
    if not is_regular(path):
        return None
    with damage(path):
        raw = json.loads(read_bytes(path))
        ranks = Ranks.model_validate_json(json.dumps(raw))
        if ranks.sha256 != hashlib.sha256(canonical(raw)).hexdigest():
            raise ValueError("it differs from its own SHA-256")
        if [entry.folder for entry in ranks.ranks] != [files.rank_folder(rank) for rank in range(ranks.world_size)]:
            raise ValueError(f"ranks: it does not name rank_0 to rank_{ranks.world_size - 1}")
    for number, entry in enumerate(ranks.ranks):
        own = folder / entry.folder
        index = read_index(own)
        if sha256_of(own / files.INDEX) != entry.sha256:
            raise UserError(DAMAGED, f"{own} is not the recording that {path} lists", RERUN)
        if (index.world_size, index.rank) != (ranks.world_size, number):
            where = f"{own / files.INDEX}: rank {index.rank} of {index.world_size}, not {number} of {ranks.world_size}"
            raise UserError(DAMAGED, where, RERUN)
    return [folder / entry.folder for entry in ranks.ranks]
