"""The learned quantizer: a code vector for each frame, chosen by Gumbel noise in training, by the largest logit else.

Source: vq-wav2vec (arXiv 1910.05453, section 3.2), wav2vec 2.0 (arXiv 2006.11477, section 2); NeMo 3.0.0
`nemo.collections.asr.parts.submodules.ssl_quantizers`, as its contrastive loss builds it: groups share their codes.

Drawn while it is built: `vars` U(0, 1); `weight_proj` torch's own, then its weight N(0, 1).

Shapes: B batch, S steps, X input, D code vector, G groups, V codes of a group, R rows (B x S).
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.losses import Contrastive

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class GumbelVectorQuantizer(nn.Module):
    """Vectors to code vectors.

    Attributes:
        temperature: of the Gumbel softmax; see `cool`.
    """

    def __init__(self, settings: Contrastive) -> None:
        super().__init__()
        self.groups, self.num_vars = settings.num_groups, settings.codebook_size
        self.vars = nn.Parameter(torch.empty(1, self.num_vars, settings.proj_dim // self.groups).uniform_())
        self.weight_proj = nn.Linear(settings.in_dim * settings.combine_time_steps, self.groups * self.num_vars)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)
        self.settings, self.temperature = settings, settings.quantizer_temp_start

    def cool(self, steps: int) -> None:
        """Take the temperature after so many steps: it falls by the same factor with each, down to a limit."""
        start, limit = self.settings.quantizer_temp_start, self.settings.quantizer_temp_min
        self.temperature = max(start * self.settings.quantizer_temp_decay**steps, limit)

    def forward(
        self, x: Float[Tensor, "B S X"], return_ids: bool = False
    ) -> (
        tuple[Float[Tensor, "B S D"], Float[Tensor, ""], float | int, Int[Tensor, "B S"]]
        | tuple[Tensor, Tensor, float | int]
    ):
        """Vectors (B, S, X) to code vectors (B, S, D), how unevenly codes are used, the temperature, and tokens (B, S).

        The second is 0 where all codes are used alike, and near 1 where one is. A token numbers the codes of all groups
        together, the first group counting most.
        """
        batch, steps, _ = x.shape
        rows = batch * steps
        logits_RV = self.weight_proj(x.reshape(rows, -1)).view(rows * self.groups, -1)
        chosen_R = logits_RV.max(-1).indices
        shares_GV = torch.softmax(logits_RV.view(rows, self.groups, -1).float(), dim=-1).mean(dim=0)
        perplexity = torch.exp(-torch.sum(shares_GV * torch.log(shares_GV + 1e-7), dim=-1)).sum()
        every = self.num_vars * self.groups
        unevenness = (every - perplexity) / every
        if self.training:
            weights_RV = F.gumbel_softmax(logits_RV.float(), tau=self.temperature, hard=True).type_as(logits_RV)
        else:
            weights_RV = torch.zeros_like(logits_RV).scatter_(-1, chosen_R.view(-1, 1), 1.0)
        # Not a product of matrices: the weights are 1 and 0 but for rounding, and the sum is rounded in NeMo's order.
        codes = weights_RV.view(rows, -1).unsqueeze(-1) * self.vars.repeat(1, self.groups, 1)
        codes_BSD = codes.view(rows, self.groups, self.num_vars, -1).sum(-2).view(batch, steps, -1)
        if not return_ids:
            return codes_BSD, unevenness, self.temperature
        tokens_BS = chosen_R.new_zeros(batch, steps)
        for codes_BS in chosen_R.view(batch, steps, self.groups).unbind(-1):
            tokens_BS = tokens_BS * self.num_vars + codes_BS
        return codes_BSD, unevenness, self.temperature, tokens_BS

    def random_codes(self, times: int, steps: int) -> Float[Tensor, "times steps D"]:
        """Code vectors (times, steps, D) of tokens that are drawn, each as likely.

        Raises:
            UserError: not more tokens than steps, at which NeMo stops, too.
        """
        tokens = self.num_vars**self.groups
        if tokens <= steps:
            what = (
                f"NeMo stops, too, where {steps} steps are masked, and there are not more than {tokens} codes to draw"
            )
            fix = "Raise codebook_size, num_groups or combine_time_steps, or leave sample_from_codebook out."
            raise UserError(what, f"sample_from_codebook=true, codebook_size={self.num_vars}", fix)
        drawn_R = torch.randint(tokens, (times * steps,)).to(self.vars.device)
        # A token's digits are the codes of its groups.
        worth_G = self.num_vars ** torch.arange(self.groups - 1, -1, -1, device=drawn_R.device)
        codes_RG = drawn_R.unsqueeze(-1) // worth_G % self.num_vars
        return torch.index_select(self.vars[0], 0, codes_RG.view(-1)).view(times, steps, -1)
