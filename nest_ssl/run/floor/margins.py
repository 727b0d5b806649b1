"""How near each token was to being another one: the distance to the runner-up, and how far rounding moves it.

A token is the code nearest to a projection of the features, so it flips only where two codes are about as near.
Source: `nest_ssl.model.quantizer`; NeMo's quantizer has the same parameters under the same names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nest_ssl.compare.rules.noise_floor import ROUNDING
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import Margin, Place

CLASS = "RandomProjectionVectorQuantizer"
ROWS = 256  # tokens whose distances to all codes are in memory at once
NEAREST = 10  # margins that are listed whatever they are, beside ties
LEAST = 2.0**-50  # that the distances themselves, in float64, are rounded by: silence is as far from every code
NEAR = 100.0  # floors within which any other is listed, too
NAMED = 8  # codes of those that come next; where rounding may put that many first, none is named


class Margins:
    """Watches the quantizers of a model while steps are repeated.

    A repeat in which another code was nearer says what that does, and nothing of rounding. Trained once more with the
    recorded tokens in their place (`attach(keep=True)`), it does.
    """

    def __init__(self, model: nn.Module) -> None:
        self._quantizers = {name: m for name, m in model.named_modules() if type(m).__name__ == CLASS}
        self._recorded: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # tokens, and their lead over the next ones
        self._next: dict[tuple[str, int], Tensor] = {}  # the codes that come next
        self._vectors: dict[tuple[str, int], Tensor] = {}  # of the tokens, as the quantizer gives them
        self._moved: dict[tuple[str, int], Tensor] = {}  # the largest change of a lead
        self._flips: dict[tuple[str, int], Tensor] = {}  # how often another code was nearer
        self._calls: dict[str, int] = {}
        self._hooks: list[Any] = []
        self._keep = self.flipped = False

    def attach(self, keep: bool = False) -> None:
        """Watch one more repeat; the first is the recorded step itself.

        Args:
            keep: give on the recorded tokens, whichever code is nearest now; they are not watched.
        """
        self._calls, self._keep, self.flipped = dict.fromkeys(self._quantizers, 0), keep, False
        for name, module in self._quantizers.items():
            self._hooks.append(module.register_forward_hook(lambda m, args, kwargs, output, name=name:
                                                            self._watch(name, m, args, kwargs, output),
                                                            with_kwargs=True))  # fmt: skip

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def _watch(self, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        key = name, self._calls[name]
        self._calls[name] += 1
        features = args[0] if args else kwargs["input_signal"]
        if key not in self._recorded:
            tokens, self._vectors[key] = output[1].detach().clone(), output[0].detach().clone()
            lead, self._next[key] = leads(module, features, tokens, NAMED)
            self._recorded[key], self._moved[key] = (tokens, lead), torch.zeros_like(lead[..., 0])
            self._flips[key] = torch.zeros_like(tokens)
            return
        tokens, recorded = self._recorded[key]
        if self._keep:  # in place: whoever has them by now has the tensors themselves
            output[0].copy_(self._vectors[key])
            output[1].copy_(tokens)
            return
        self.flipped = self.flipped or bool((output[1] != tokens).any())
        lead, _ = leads(module, features, tokens)
        self._moved[key] = torch.maximum(self._moved[key], (lead - recorded[..., :1]).abs().squeeze(-1))
        self._flips[key] += output[1] != tokens

    def found(self) -> list[Margin]:
        """The nearest decisions of every quantizer, nearest first."""
        margins = []
        for (name, call), (_, recorded) in self._recorded.items():
            lead, moved = recorded[..., 0].flatten(), self._moved[name, call].flatten().clamp(min=LEAST)
            following, codes = recorded.flatten(0, -2), self._next[name, call].flatten(0, -2)
            place = Place.of(Address(Kind.OUTPUT, name, call, path="1"))
            ties = int((lead < LEAST).sum())
            for rank, flat in enumerate(lead.argsort().tolist()):
                if rank >= ties + NEAREST and not lead[flat] < NEAR * moved[flat]:
                    continue
                index = [int(i) for i in torch.unravel_index(torch.tensor(flat), recorded.shape[:-1])]
                margin, flips = max(0.0, float(lead[flat])), int(self._flips[name, call].flatten()[flat])
                near = max(1, int((following[flat] <= ROUNDING * moved[flat]).sum()))
                others = codes[flat, :near].tolist() if near < NAMED else None
                row = Margin(place=place, index=index, margin=margin, floor=float(moved[flat]), flips=flips)
                margins.append(row.model_copy(update={"others": others}))
        return margins


def leads(module: Any, features: Tensor, tokens: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """By how much the code of each token is nearer than the next ones; negative where another is nearer.

    Args:
        module: a quantizer.
        features: (B, F, T), or (B, T, F) where its time comes first.
        tokens: (B, S) or (B, S, H).
        count: N, of the next ones, or as many as there are.

    Returns:
        (..., N): float64, from the nearest on, and which codes these are; the axes before are those of `tokens`.
    """
    frames = features if getattr(module, "time_ahead", False) else features.transpose(1, 2)
    books, _, width = module.codebooks.shape
    batch, steps = tokens.shape[:2]
    # Not by calling the projection, which would be one more call of a module that is watched.
    rows = F.linear(frames.contiguous().reshape(batch, steps, -1), module.proj.weight)
    rows = F.normalize(rows.view(batch, steps, books, width), dim=-1).double()
    found, nearest = list[Tensor](), list[Tensor]()
    for book, codes in enumerate(module.codebooks.double()):
        chosen = tokens.reshape(batch, steps, books)[:, :, book].reshape(-1, 1)
        parts = (torch.split(table, ROWS) for table in (rows[:, :, book].reshape(-1, width), chosen))
        for part, own in zip(*parts, strict=True):
            distances = torch.cdist(part, codes, compute_mode="donot_use_mm_for_euclid_dist")
            token = distances.gather(1, own)
            others = distances.scatter(1, own, torch.inf)
            # The smallest alone is found in a fraction of the time.
            following = others.topk(min(count, len(codes) - 1), largest=False) if count > 1 else others.min(1, True)
            found.append(following[0] - token)
            nearest.append(following[1])
    tables = (torch.cat(each).view(books, batch, steps, -1) for each in (found, nearest))
    lead, code = (table.permute(1, 2, 0, 3).reshape(*tokens.shape, -1) for table in tables)
    return lead, code
