"""What cannot be recorded, and is refused before training."""

from __future__ import annotations

from nest_ssl.base.errors import UserError


def refuse_several_processes(world_size: int) -> None:
    """A recording holds one process; several would write over one another."""
    if world_size > 1:
        fix = "Record with one process (trainer.devices=1, trainer.num_nodes=1)."
        raise UserError("several processes cannot be recorded", f"{world_size} processes train", fix)


def refuse_steps_outside(steps: frozenset[int], first: int, end: float) -> None:
    """A step that training cannot reach is a mistake to be reported now, not after hours."""
    for step in sorted(steps):
        if step < first:
            where = f"save_steps names {step}, and this run goes on at {first}"
            raise UserError("a step to record is already trained", where, "Ask for later steps, or save_steps=none.")
        if step >= end:
            where = f"save_steps names {step}, training ends after {end:,.0f} batches, counted from 0"
            more = "Train more batches (BATCHES, trainer.max_epochs, trainer.limit_train_batches)"
            raise UserError("a step to record is never reached", where, f"{more} or ask for fewer steps.")
