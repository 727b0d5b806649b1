"""What cannot be recorded, and is refused before training."""

from __future__ import annotations

from nest_ssl.base.errors import UserError


def refuse_one_place(world_size: int, rank: int | None) -> None:
    """A recording holds one process: several that do not know their ranks would write over one another."""
    if world_size > 1 and rank is None:
        fix = "Start the ranks with make RANKS=N, or use nest_ssl.recording once torch.distributed is initialized."
        raise UserError("several processes cannot record in one place", f"{world_size} processes train", fix)


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
