"""The ledger of random draws: which phase of a step, or which call, drew how many numbers from which generator.

draws = DrawObserver("fetch")
...                              # the batch is made
draws.enter("training_step")
draws.close(call, event)         # at each start and end of a module's call: what was drawn until then, `call` drew
draws.enter("backward")

A stretch is what lies between two such moments. It becomes an entry for each generator that has another
state after it, and is charged to the innermost module call that is open, or to the phase where none is. Only states are
read: nothing is ever drawn, and where nothing was drawn nothing is digested. Numbers are counted by drawing them again,
from a copy of the state: a twelfth of a step's time where dropout draws, and so torch's are counted beside training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from nest_ssl.base.rng import State, digest, read_states, state_bytes, words_between
from nest_ssl.recording.calls import Call
from nest_ssl.recording.index import DrawEntry

Beside = Callable[[Callable[[], DrawEntry]], "Future[DrawEntry]"]


def at_once(job: Callable[[], DrawEntry]) -> Future[DrawEntry]:
    """What is counted there and then."""
    done: Future[DrawEntry] = Future()
    done.set_result(job())
    return done


class DrawObserver:
    """Collects `entries` from now on, and the whole `states` from which calls drew: what a replay starts from.

    `states` also has those that `keep` was asked for. It holds each state once, by generator and digest, as the bytes
    of `nest_ssl.base.rng.state_bytes`.

    Args:
        phase: what draws first.
        beside: has numbers counted by another thread.
    """

    def __init__(self, phase: str, beside: Beside = at_once) -> None:
        self._beside = beside
        self._made: list[tuple[str, Future[DrawEntry]]] = []
        self.states: dict[str, dict[str, torch.Tensor]] = {}
        self._phase = phase
        self._event = 0
        self._present = read_states()
        self._digests: dict[str, str] = {}  # of the present states, where one was needed

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self._made)

    @property
    def entries(self) -> list[DrawEntry]:
        """Those so far; what is not counted yet is waited for."""
        return [made.result() for _, made in self._made]

    def of(self, generators: Collection[str], first: int) -> list[DrawEntry]:
        """Those of some generators alone, from the one of that number on."""
        return [made.result() for generator, made in self._made[first:] if generator in generators]

    def ledger(self) -> list[dict[str, Any]]:
        """`entries` as a file has them."""
        return [entry.model_dump() for entry in self.entries]

    def enter(self, phase: str) -> None:
        """End the stretch; from now on `phase` draws."""
        self.charge(self._phase)
        self._phase = phase

    def close(self, call: Call | None, event: int) -> None:
        """End the stretch at the start or end of a call that has number `event`; `call` was the innermost one open."""
        self.charge(self._phase, call)
        self._event = event + 1

    def keep(self) -> dict[str, str]:
        """Keep the whole state of every generator as of the last boundary; returns the digests."""
        kept = {generator: digest(generator, state) for generator, state in self._present.items()}
        for generator, state in self._present.items():
            self._keep(generator, state, kept[generator])
        return kept

    def charge(self, phase: str, call: Call | None = None) -> None:
        """End the stretch, drawn by `call`, or by `phase` where there is none; then go on as before."""
        before, self._present = self._present, read_states()
        module, number, index = (None, None, None) if call is None else (call.module, call.call, call.index)
        for generator, state in self._present.items():
            old = before.get(generator, state)
            if state == old:
                continue
            started = self._digests.get(generator) or digest(generator, old)
            ended = self._digests[generator] = digest(generator, state)
            facts = {"module": module, "call": number, "index": index, "event": self._event, "generator": generator}
            facts |= {"phase": phase if call is None else "forward", "before": started, "after": ended}
            beside = self._beside if generator == "torch_cpu" else at_once  # of the others' there are few
            self._made.append((generator, beside(partial(_counted, facts, old, state))))
            if call is not None:
                self._keep(generator, old, started)

    def _keep(self, generator: str, state: State, name: str) -> None:
        if name not in self.states.setdefault(generator, {}):
            whole = torch.frombuffer(bytearray(state_bytes(generator, state)), dtype=torch.uint8)
            self.states[generator][name] = whole


def _counted(facts: dict[str, Any], before: State, after: State) -> DrawEntry:
    """An entry of which all is known but how many numbers lie between two states."""
    return DrawEntry(**facts, draws=words_between(facts["generator"], before, after))
