"""The contrastive loss: of many vectors, which is the one behind the mask?

Source: wav2vec 2.0 (arXiv 2006.11477, section 3.2); NeMo 3.0.0 `nemo.collections.asr.losses.ssl_losses.contrastive`.

Drawn while it is built: that of the quantizer (`gumbel.py`), or `target_proj`, torch's own.

Shapes: B batch, F features, T frames, S steps (T / combine_time_steps), D vectors to compare, M masked steps,
N negatives.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.losses import Contrastive
from nest_ssl.model.gumbel import GumbelVectorQuantizer
from nest_ssl.releases import GENERATIONS, NEWEST, Generation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ContrastiveLoss(nn.Module):
    """Cross entropy of the true vector among others, by cosine similarity.

    Attributes:
        target_ids: the tokens (B, S) of the last call, for other losses to predict; of a quantizer that stores them.
        target_lengths: how many of them there are (B), if those that repeat the one before are left out; else None.
    """

    needs_labels = False
    target_ids: Tensor
    target_lengths: Tensor | None

    def __init__(self, settings: Contrastive, differences: Generation = GENERATIONS[NEWEST]) -> None:
        super().__init__()
        self.settings, self.few_negatives = settings, differences.few_negatives
        if settings.quantized_targets:
            self.quantizer = GumbelVectorQuantizer(settings)
        else:
            self.target_proj = nn.Linear(settings.in_dim * settings.combine_time_steps, settings.proj_dim)

    def begin_step(self, step: int) -> None:
        """Let the quantizer know how many steps were trained."""
        if self.settings.quantized_targets:
            self.quantizer.cool(step)

    def forward(
        self,
        spectrograms: Float[Tensor, "B F T"],
        spec_masks: Float[Tensor, "B F T"],
        decoder_outputs: Float[Tensor, "B S D"],
        decoder_lengths: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Features as they were heard, masks (1 where masked) and predictions to a scalar; lengths are not used.

        Raises:
            UserError: utterances of a batch differ in how many of their steps are masked; or as `random_codes` and
                `sample_negatives`.
        """
        settings, (batch, steps, _) = self.settings, decoder_outputs.shape
        frames = -(-spectrograms.size(2) // steps) * steps
        heard_BSX, masks_BSX = (
            F.pad(x.transpose(1, 2), (0, 0, 0, frames - x.size(2))).reshape(batch, steps, -1)
            for x in (spectrograms, spec_masks)
        )
        targets_BSD, unevenness = self.targets(heard_BSX)
        masked = (masks_BSX.mean(-1) > settings.mask_threshold).nonzero(as_tuple=True)
        out_MD, true_MD = decoder_outputs[masked], targets_BSD[masked]
        if settings.sample_from_same_utterance_only and len(out_MD) % batch:
            what = f"NeMo stops, too, where {len(out_MD)} masked steps are not shared out evenly"
            fix = "Mask less by frequency (model.spec_augment), or give sample_from_same_utterance_only=false."
            raise UserError(what, f"sample_from_same_utterance_only=true, {batch} utterances in a batch", fix)
        if settings.sample_from_same_utterance_only:  # of each, the same steps serve all utterances of the batch
            out_MD, true_MBD = (x.reshape(batch, -1, x.size(-1)).transpose(0, 1) for x in (out_MD, true_MD))
            among = targets_BSD.transpose(0, 1) if settings.sample_from_non_masked else true_MBD
            negatives = self.sample_negatives(among, len(true_MBD))
            out_MD, true_MD = (x.reshape(-1, x.size(-1)) for x in (out_MD, true_MBD))
            negatives = negatives.reshape(len(negatives), -1, negatives.size(-1))
        elif settings.group_loss:  # all codes
            negatives = self.quantizer.vars.transpose(0, 1).expand(-1, len(out_MD), -1)
        elif settings.sample_from_codebook:
            negatives = self.quantizer.random_codes(settings.num_negatives, len(true_MD))
        else:
            among = targets_BSD.reshape(batch * steps, -1) if settings.sample_from_non_masked else true_MD
            negatives = self.sample_negatives(among, len(true_MD))
        scores = self.similarity(out_MD, negatives, true_MD).transpose(0, 1)
        loss = F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long), reduction=settings.reduce)
        if settings.quantized_targets and settings.prob_ppl_weight != 0:
            loss = loss + settings.prob_ppl_weight * unevenness * len(scores)
        return loss * (settings.multiplier / batch)

    def targets(self, heard_BSX: Float[Tensor, "B S _"]) -> tuple[Float[Tensor, "B S D"], Tensor]:
        """The vectors (B, S, D) to find again, and how unevenly codes are used."""
        if not self.settings.quantized_targets:
            return self.target_proj(heard_BSX), heard_BSX.new_zeros(())
        if not self.settings.store_ids:
            targets_BSD, unevenness, _ = self.quantizer(heard_BSX)
            return targets_BSD, unevenness
        targets_BSD, unevenness, _, self.target_ids = self.quantizer(heard_BSX, return_ids=True)
        self.target_lengths = None
        if self.settings.reduce_ids:
            self.target_ids, self.target_lengths = without_repeats(self.target_ids)
        return targets_BSD, unevenness

    def sample_negatives(self, among: Float[Tensor, "M *B D"], number: int) -> Float[Tensor, "N number *B D"]:
        """`num_negatives` vectors for each of `number` steps, drawn from the first axis, each as likely.

        Raises:
            UserError: there are fewer, which NeMo has drawn again since 3.0 alone.
        """
        negatives, repeat = self.settings.num_negatives, self.few_negatives == "repeat"
        if len(among) < negatives and not repeat:
            what = (
                f"NeMo before 3.0 stops where {len(among)} steps are masked, and {negatives} negatives are to be drawn"
            )
            raise UserError(what, f"num_negatives={negatives}", "Lower it, or give nemo=3.0 (NEMO_VERSION=3.0.0).")
        chances = torch.ones((number, len(among)), device=among.device)
        drawn = torch.multinomial(chances, negatives, replacement=repeat and len(among) < negatives)
        return among[drawn.view(-1)].view((number, negatives, *among.shape[1:])).transpose(0, 1)

    def similarity(
        self, out_MD: Float[Tensor, "M D"], negatives_NMD: Float[Tensor, "N M D"], true_MD: Float[Tensor, "M D"]
    ) -> Float[Tensor, "N_and_1 M"]:
        """Cosine similarity over temperature, of the true vector first; -inf where a negative is the true one."""
        same_NM = (true_MD == negatives_NMD).all(-1)
        vectors = torch.cat([true_MD.unsqueeze(0), negatives_NMD], dim=0)
        repeated = out_MD.float().unsqueeze(0).expand(len(vectors), -1, -1)
        scores = torch.cosine_similarity(repeated, vectors.float(), dim=-1).type_as(out_MD) / self.settings.logit_temp
        return scores.masked_fill(F.pad(same_NM, (0, 0, 1, 0)), float("-inf"))


def without_repeats(tokens_BS: Int[Tensor, "B S"]) -> tuple[Int[Tensor, "B _"], Int[Tensor, " B"]]:
    """Tokens without those that are the one before's, zeros behind the last, and how many are left.

    As in NeMo, runs are found through the whole batch at once, row behind row.
    """
    _, runs_BS = torch.unique_consecutive(tokens_BS, return_inverse=True)
    runs_BS = runs_BS - runs_BS.min(dim=1, keepdim=True).values
    lengths_B = runs_BS.max(dim=-1).values + 1
    return torch.zeros_like(tokens_BS).scatter_(1, runs_BS, tokens_BS)[:, : int(lengths_B.max())], lengths_B
