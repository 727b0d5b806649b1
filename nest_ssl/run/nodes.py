"""Several machines that train together (`torchrun --nnodes`): how they find each other.

On each, torchrun starts the command, which starts the ranks of that machine (`ranks`). The first one makes the folder
in which all record, and picks the port at which the ranks meet; the others ask for both, through a store of torch that
all reach, and see there whether their settings are its settings. From then on they speak through files in that folder.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import leaves, pairs
from nest_ssl.record.secrets import masked

MEET_S = 300.0  # within which all nodes have to be there


@dataclass(frozen=True)
class Node:
    """This machine, where several train together; the default is one that trains alone.

    Args:
        number: which, from 0.
        nodes: how many there are.
        ranks: how many ranks each of them has; 0: all that are asked for.
        address: of the first one.
    """

    number: int = 0
    nodes: int = 1
    ranks: int = 0
    address: str = "127.0.0.1"
    _store: Any = field(default=None, repr=False)  # a torch.distributed.Store that all nodes reach

    def meet(self, folder: Path | None, settings: Mapping[str, Any]) -> tuple[Path, int]:
        """Where all record, and the port at which the ranks meet; of the first node is both.

        Args:
            folder: where all record, on the first node; None on another.
            settings: that this node was started with: have to be the first node's.

        Raises:
            UserError: another node is not there, has not got that folder, or has other settings.
        """
        fix = f"Start the same command on all nodes within {MEET_S:.0f} s, with output_dir in a folder that they share."
        if folder is not None:
            with socket.socket() as free:
                free.bind(("127.0.0.1" if self.nodes == 1 else "", 0))
                port = free.getsockname()[1]
            if self.nodes > 1:
                self._store.set("nest_ssl", json.dumps([str(folder), port, settings]))
        other = "the first node"
        try:
            if folder is None:
                place, port, first = json.loads(self._store.get("nest_ssl"))
                folder, refused = Path(place), self._refused(Path(place), first, settings)
                self._store.set(f"nest_ssl {self.number}", json.dumps(refused))
                if refused:
                    raise UserError(refused[0], refused[1], fix)
            for other in (f"node {number}" for number in range(1, self.nodes) if not self.number):
                if refused := json.loads(self._store.get(f"nest_ssl {other.removeprefix('node ')}")):
                    raise UserError(refused[0], refused[1], fix)
        except RuntimeError as error:  # of the store: its other end is gone, or it was waited for too long
            raise UserError(f"{other} is not there", f"{self.address}, node {self.number}", fix) from error
        return folder, port

    def _refused(self, folder: Path, first: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, str] | None:
        """What keeps this node from training with the first one, and where it is; secrets are masked."""
        if not folder.is_dir():
            return "not a folder that all nodes share", f"{folder}: node {self.number} has none"
        sides = [json.loads(json.dumps(each)) for each in (first, settings)]
        shown = [dict(leaves(masked(each))) for each in sides]
        for key, there, here in pairs(*(dict(leaves(each)) for each in sides)):
            if there != here and (there == there or here == here):  # NaN is not itself
                there, here = (each.get(key, "not given") for each in shown)
                where = f"{key}: {there} on the first node, {here} on node {self.number}"
                return "the nodes have different settings", where
        return None


def ended_file(folder: Path, node: int) -> Path:
    """With what exit code each rank of a node has ended."""
    return folder / f"ended_{node}.txt"


def store_of_torchrun(nodes: int, which: int) -> Any:
    """What all nodes reach, a `torch.distributed.Store`, in one process of each; None in the others.

    It is torchrun's own where that shares it with what it starts.

    Raises:
        UserError: the first node's cannot be reached; MASTER_PORT is no port.
    """
    if nodes == 1 or os.environ["LOCAL_RANK"] != "0":
        return None
    given = os.environ["MASTER_PORT"]
    if not given.isdecimal() or not 1 <= int(given) <= 65_535:
        raise UserError("not the number of a port", f"MASTER_PORT={given}", "Start torchrun with --master-port=N.")
    address, port = os.environ["MASTER_ADDR"], int(given)
    own = which == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(address, port, None, own, timedelta(seconds=MEET_S), wait_for_workers=False)
    except RuntimeError as error:
        fix = "Start torchrun on all nodes, with the address of the first."
        raise UserError("the first node cannot be reached", f"{address}:{port}", fix) from error
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
