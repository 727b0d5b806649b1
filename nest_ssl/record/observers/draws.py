"""The ledger of random draws: which stage of a step drew how many numbers from which generator.

ledger = Ledger("fetch")
...                          # the batch is made
ledger.enter("training_step")
ledger.close(call)           # at each start and end of a module's call: what was drawn until then, `call` drew
ledger.enter("backward")

A stretch is what lies between two such moments. It becomes an entry for each generator whose state it changed, and is
charged to the innermost module call that is open, or to the stage where none is. Only states are read: nothing is ever
drawn, and where nothing was drawn nothing is digested.
"""

from __future__ import annotations

from typing import Any

from nest_ssl.base.rng import State, digest, read_states, words_between


class Ledger:
    """Collects `entries` from now on.

    An entry holds `stage` (``name#call`` as in the list of calls, the model itself with an empty name, or a stage
    outside), `index` (the call's in `layer_outputs.pkl`, None outside), `event` (how many starts and ends of calls came
    before the stretch ended), `generator`, `draws` (32-bit words; see `words_between`), and the digests of the state
    `before` and `after`.
    """

    def __init__(self, stage: str) -> None:
        self.entries: list[dict[str, Any]] = []
        self._stage = stage
        self._events = 0
        self._states = read_states()
        self._digests: dict[str, str] = {}  # of the present states, where one was needed

    def enter(self, stage: str) -> None:
        """End the stretch; from now on `stage` draws."""
        self.charge(self._stage)
        self._stage = stage

    def close(self, call: dict[str, Any] | None) -> None:
        """End the stretch at a start or end of a call; `call` is the innermost one open until then, if any."""
        if call is None:
            self.charge(self._stage)
        else:
            self.charge(f"{call['module']}#{call['call']}", call["index"])
        self._events += 1

    def charge(self, stage: str, index: int | None = None) -> None:
        """End the stretch, drawn by `stage`; what comes after is charged as before."""
        states = read_states()
        for generator, state in states.items():
            before = self._states.get(generator, state)
            if state != before:
                self.entries.append(self._entry(stage, index, generator, before, state))
        self._states = states

    def _entry(self, stage: str, index: int | None, generator: str, before: State, after: State) -> dict[str, Any]:
        old = self._digests.get(generator) or digest(generator, before)
        self._digests[generator] = digest(generator, after)
        return {
            "stage": stage,
            "index": index,
            "event": self._events,
            "generator": generator,
            "draws": words_between(generator, before, after),
            "before": old,
            "after": self._digests[generator],
        }
