"""Random-projection quantizer: eight frames stacked, projected at random, and named by the nearest of random codes.

Source: BEST-RQ (arXiv 2202.01855, section 3.1); NeMo 3.0.0 `nemo.collections.asr.modules.ssl_modules.quantizers`.
Nothing here learns.

Shapes: B batch, F features, T frames, S tokens (T / combine_time_steps), H codebooks, D code dimension, C codes,
R rows to look up, U different rows.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.config.parts import Quantizer

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

DECISIVE_MARGIN = 1e-9  # a lead in score that puts the nearest code beyond doubt
# Scores at once, by device. 8 MB, which a CPU's caches hold: twice as fast as all together, and memory does not grow
# with the batch. On a GPU every part costs launches: half a gigabyte.
SCORES_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}


class RandomProjectionVectorQuantizer(nn.Module):
    """Features to tokens."""

    def __init__(self, settings: Quantizer) -> None:
        super().__init__()
        self.code_dim, self.num_classes, self.num_books = settings.code_dim, settings.num_classes, settings.num_books
        self.combine_time_steps, self.time_ahead = settings.combine_time_steps, settings.time_ahead
        self.squeeze_single = settings.squeeze_single and settings.num_books == 1
        stacked = settings.feat_in * settings.combine_time_steps
        self.proj = nn.Linear(stacked, settings.num_books * settings.code_dim, bias=False)
        nn.init.xavier_normal_(self.proj.weight)
        # Drawn in float32 only to be overwritten, as in NeMo: whatever is drawn later depends on it.
        codes_HCD = torch.randn(settings.num_books, settings.num_classes, settings.code_dim).double()
        nn.init.normal_(codes_HCD)
        self.codebooks = nn.Parameter(F.normalize(codes_HCD, dim=-1))
        if settings.freeze:
            self.requires_grad_(False).eval()

    def forward(self, input_signal: Float[Tensor, "B _ _"]) -> tuple[Float[Tensor, "B _ _ *H"], Int[Tensor, "B S *H"]]:
        """Features (B, F, T) to code vectors (B, D, S, H), or (B, S, D, H) if `time_ahead`, and tokens (B, S, H)."""
        x_BSHD = self.projected(input_signal)
        tokens_BSH = torch.stack(
            [
                nearest_codes(x_BSHD[:, :, h].reshape(-1, self.code_dim), self.codebooks[h])
                for h in range(self.num_books)
            ],
            dim=-1,
        ).view(x_BSHD.shape[:-1])
        vectors = self.vectors(tokens_BSH)
        if self.squeeze_single:
            return vectors.squeeze(-1), tokens_BSH.squeeze(-1)
        return vectors, tokens_BSH

    def projected(self, input_signal: Float[Tensor, "B _ _"]) -> Float[Tensor, "B S H D"]:
        """Features to what is compared with the codes."""
        x_BTF = input_signal if self.time_ahead else input_signal.transpose(1, 2)
        batch, steps = x_BTF.size(0), x_BTF.size(1) // self.combine_time_steps
        stacked = x_BTF.contiguous().reshape(batch, steps, -1) if self.combine_time_steps > 1 else x_BTF
        return F.normalize(self.proj(stacked).view(batch, steps, self.num_books, self.code_dim), dim=-1)

    def vectors(self, tokens_BSH: Int[Tensor, "B S H"]) -> Float[Tensor, "B _ _ H"]:
        """The code vectors, as NeMo lays them out: with several codebooks it reads (B, H, S, D) as (B, S, D, H)."""
        batch, steps, books = tokens_BSH.shape
        all_codes_BSH = tokens_BSH + self.num_classes * torch.arange(books, device=tokens_BSH.device)
        rows = F.embedding(all_codes_BSH.transpose(1, 2).reshape(-1), self.codebooks.view(-1, self.code_dim))
        vectors = rows.view(batch, steps, self.code_dim, books)
        return vectors if self.time_ahead else vectors.transpose(1, 2)


@torch.no_grad()
def nearest_codes(x_RD: Float[Tensor, "R D"], codes_CD: Float[Tensor, "C D"]) -> Int[Tensor, " R"]:
    """The index (R) of the code nearest to each row: NeMo's own choice, ties and rounding included, many times faster.

    NeMo takes, in float64, the first least of |x - c|. As |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), the largest score
    x.c - |c|^2 / 2 is the nearest code. Rows and codes are no longer than 1, so the float64 rounding of either way is
    some 1e-14 at most, and a code that leads by `DECISIVE_MARGIN` leads in NeMo too. The other rows are few, but for
    silence: it projects to zero, as far from every code but for rounding. For these the distances are computed as NeMo
    does, once for each different row. How many they are is known on the device alone: the host waits for a GPU here,
    and in `ahead.py` does not.
    """
    tokens_R, unsure_R = by_score(x_RD, codes_CD)
    if codes_CD.dtype != torch.float64:
        return tokens_R
    (unsure,) = unsure_R.nonzero(as_tuple=True)  # as indices: found once, the host waits for the device once
    if len(unsure):
        rows_UD, which = torch.unique(x_RD[unsure], dim=0, return_inverse=True)
        tokens_R[unsure] = distances(rows_UD, codes_CD).argmin(-1)[which]
    return tokens_R


@torch.no_grad()
def by_score(
    x_RD: Float[Tensor, "R D"], codes_CD: Float[Tensor, "C D"]
) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
    """The code of the best score for each row, and which rows are too close to call. In half precision all would be,
    and NeMo's own decides."""
    on_cpu = x_RD.device.type == "cpu"
    parts = torch.split(x_RD, max(1, SCORES_AT_ONCE["cpu" if on_cpu else "cuda"] // len(codes_CD)))
    if codes_CD.dtype != torch.float64:
        tokens_R = torch.cat([distances(part_RD, codes_CD).argmin(-1) for part_RD in parts])
        return tokens_R, torch.zeros_like(tokens_R, dtype=torch.bool)
    bias_C = codes_CD.square().sum(-1) / -2
    leads, tokens = [], []
    for part_RD in parts:
        lead_R, token_R = best_scores(torch.addmm(bias_C, part_RD.to(codes_CD.dtype), codes_CD.T), by_sorting=on_cpu)
        leads.append(lead_R)
        tokens.append(token_R)
    return torch.cat(tokens), ~(torch.cat(leads) > DECISIVE_MARGIN)  # so written, NaN is unsure


def best_scores(scores_RC: Float[Tensor, "R C"], by_sorting: bool) -> tuple[Float[Tensor, " R"], Int[Tensor, " R"]]:
    """By how much the best score of each row leads, and which it is; the scores are written over.

    Sorting is the faster way on a CPU, and the slower one on a GPU.
    """
    if by_sorting:
        scores_R2, codes_R2 = scores_RC.topk(2, dim=-1)
        return scores_R2[:, 0] - scores_R2[:, 1], codes_R2[:, 0]
    best_R, code_R = scores_RC.max(-1)
    return best_R - scores_RC.scatter_(-1, code_R.unsqueeze(-1), -torch.inf).amax(-1), code_R


def distances(x_RD: Float[Tensor, "R D"], codes_CD: Float[Tensor, "C D"]) -> Float[Tensor, "R C"]:
    """Euclidean distances (R, C) in NeMo's arithmetic: the codes' type, summed over D, codes side by side in memory."""
    distances_RC: Tensor = (x_RD.unsqueeze(-1) - codes_CD.T.unsqueeze(0)).norm(dim=-2)
    return distances_RC
