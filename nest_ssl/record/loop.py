"""Any loop of torch, recorded: `with recording(model, out) as r`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from nest_ssl.base.determinism import flags
from nest_ssl.record.digest_session import open_session
from nest_ssl.record.levels import Level, Record
from nest_ssl.record.ranks import rank_writer
from nest_ssl.record.session import Session


@contextmanager
def recording(
    out: Path | str,
    model: nn.Module,
    *,
    steps: Iterable[int] | None = None,
    output_names: Sequence[str] = (),
    config: str | Mapping[str, Any] = "{}\n",
    operators: bool | Sequence[str] = False,
    record: Record = "modules",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    overwrite: bool = False,
    **index: Any,
) -> Iterator[Session]:
    """Record a loop of torch into folder `out`: say what a step is done with, and everything in it is watched.

        with nest_ssl.recording("outputs/run", model, steps=[0, 1]) as r:
            for inputs, targets in loader:
                r.batch((inputs, targets))          # made, and not used yet
                loss = criterion(model(inputs), targets)
                r.loss(loss)                        # the forward is done
                optimizer.zero_grad()
                loss.backward()
                r.backward_done()                   # gradients are complete, neither clipped nor used
                optimizer.step()
                r.step_done(optimizer)

    Recorded are the batch, every call of every module with inputs, outputs and output gradients, loss, gradients,
    weights, the optimizer's state, and random draws. Training is not changed by it: the weights are the same bits.
    An error in the block leaves nothing of the recording, and an earlier one as it was.

    Where `torch.distributed` is initialized, each process records into `rank_R` in `out`, and the first completes it.

    Args:
        model: what is trained. Calls of its `forward`, and of every module in it, are recorded.
        steps, output_names, config, operators: see `Session`.
        record, include, exclude: how much of each step is recorded, see `Level`; all by default.
        overwrite: whether an earlier recording there may be replaced.
        index: what else the recording should say, e.g. `seed`, `data` (hashes of the data, by section and file) and
            `trainer` (`name`, `package`, `version`; by default the folder's name, the model's package and no version).

    Raises:
        TypeError: the model is no module of torch.
        UserError: the folder must not be replaced or cannot be written, or a step that was asked for was never reached.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"recording(out, model): the model is a {type(model).__name__}, not a torch.nn.Module")
    started = time.perf_counter()
    trainer = {"name": Path(out).name, "package": type(model).__module__.partition(".")[0], "version": ""}
    with (
        rank_writer(out, overwrite) as writer,
        open_session(writer, steps, output_names, config, operators, Level(record, include, exclude)) as session,
    ):
        session.begin(model)
        yield session
        took = round(time.perf_counter() - started, 1)
        session.finish(**{"trainer": trainer, "flags": flags(), "duration_s": took, **index})
