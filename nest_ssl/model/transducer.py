"""A transducer: which tokens were said, and when? A prediction network reads the tokens so far, a joint network weighs
them against what is heard at each step, and the loss sums over every way to share out the tokens among the steps.

Source: Graves (arXiv 1211.3711); NeMo 3.0.0 `nemo.collections`: `asr.modules.rnnt`, `common.parts.rnn`,
`asr.losses.ssl_losses.rnnt`, `asr.losses.rnnt`, and of `asr.parts.numba.rnnt_loss` what a CPU computes. Names are
NeMo's, and so are the bits.

Drawn by torch's generator while it is built, each as torch's own: the embedding, the LSTM (and with t_max its biases
again, in order), pred, enc and the last layer of the joint network. Drawn in training: with random_state_sampling the
LSTM's first states, dropout, and with masking_prob which tokens the joint network does not see.

Shapes: B batch, T steps, D model width, N tokens, U the start and the tokens behind it, P prediction width, J joint
width, C classes, the blank the last of them.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.losses import PredictionNet, Rnnt, RnntDecoder, RnntJoint, Transducer
from nest_ssl.kernels.dropout import Dropout

if TYPE_CHECKING:
    from jaxtyping import Float, Int

States = tuple[Tensor, Tensor]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
}  # fmt: skip


class LSTMDropout(nn.Module):
    """An LSTM whose gates begin open, and dropout behind it."""

    def __init__(self, settings: PredictionNet) -> None:
        super().__init__()
        inputs, hidden = settings.pred_hidden, settings.hidden
        projected = inputs if inputs < hidden else 0
        self.lstm = nn.LSTM(inputs, hidden, settings.pred_rnn_layers, dropout=settings.dropout, proj_size=projected)
        forget = slice(hidden, 2 * hidden)
        with torch.no_grad():
            for name, bias in self.lstm.named_parameters():
                if "bias" in name and settings.t_max is not None:  # memories of up to t_max steps: arXiv 1804.11188
                    bias.zero_()
                    bias[forget] = nn.init.uniform_(bias.new_empty(hidden), 1, settings.t_max - 1).log()
                    bias[:hidden] = -bias[forget]
                elif "bias_ih" in name and settings.forget_gate_bias is not None:
                    bias[forget] = settings.forget_gate_bias
                elif "bias_hh" in name and settings.forget_gate_bias is not None:
                    bias[forget].mul_(settings.hidden_hidden_bias_scale)
            for parameter in self.lstm.parameters():
                parameter.mul_(settings.weights_init_scale)
        self.dropout = Dropout(settings.dropout) if settings.dropout else None

    def forward(self, x: Float[Tensor, "U B P"], h: States | None = None) -> tuple[Float[Tensor, "U B P"], States]:
        """Embedded tokens `x` (U, B, P), behind the states `h` or zeros, to (U, B, P), and the last states."""
        out_UBP, states = self.lstm(x, h)
        return out_UBP if self.dropout is None else self.dropout(out_UBP), states


class RNNTDecoder(nn.Module):
    """The prediction network."""

    def __init__(self, settings: RnntDecoder) -> None:
        super().__init__()
        blank, width = settings.vocab_size, settings.prednet.pred_hidden
        embed = (
            nn.Embedding(blank + 1, width, padding_idx=blank) if settings.blank_as_pad else nn.Embedding(blank, width)
        )
        self.prediction = nn.ModuleDict({"embed": embed, "dec_rnn": LSTMDropout(settings.prednet)})
        self.tokens, self.states = embed.num_embeddings, (settings.prednet.pred_rnn_layers, width)
        self.random_state_sampling = settings.random_state_sampling

    def forward(
        self, targets: Int[Tensor, "B N"], target_length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B P U"], Int[Tensor, " B"], States]:
        """What is predicted from the start and behind each token (B, P, U); lengths as they are given; last states.

        Raises:
            UserError: a token has no embedding.
        """
        targets = targets.long()
        if targets.numel() and int(targets.max()) >= self.tokens:
            what = f"NeMo stops, too, at token {int(targets.max())} of a transcript or of another loss"
            raise UserError(what, f"decoder.vocab_size, {self.tokens} embeddings", "Raise vocab_size and num_classes.")
        x_BNP = self.prediction["embed"](targets)
        x_BUP = torch.cat([x_BNP.new_zeros(len(x_BNP), 1, x_BNP.size(2)), x_BNP], dim=1)
        states = None
        if self.random_state_sampling and self.training:
            layers, width = self.states
            states = tuple(torch.randn(layers, len(x_BUP), width, dtype=x_BUP.dtype, device=x_BUP.device) for _ in "hc")
        out_UBP, states = self.prediction["dec_rnn"](x_BUP.transpose(0, 1), states)
        return out_UBP.transpose(0, 1).transpose(1, 2), target_length, states


class RNNTJoint(nn.Module):
    """The joint network: scores of every class at every step behind every token."""

    def __init__(self, settings: RnntJoint) -> None:
        super().__init__()
        sizes = settings.jointnet
        self.pred = nn.Linear(sizes.pred_hidden, sizes.joint_hidden)
        self.enc = nn.Linear(sizes.encoder_hidden, sizes.joint_hidden)
        dropout = [Dropout(sizes.dropout)] if sizes.dropout else []
        last = nn.Linear(sizes.joint_hidden, settings.num_classes + 1)  # and the blank
        self.joint_net = nn.Sequential(ACTIVATIONS[sizes.activation](), *dropout, last)
        self.masking_prob, self.log_softmax = settings.masking_prob, settings.log_softmax is not False

    def forward(
        self, encoder_outputs: Float[Tensor, "B D T"], decoder_outputs: Float[Tensor, "B P U"]
    ) -> Float[Tensor, "B T U C"]:
        """Encodings (B, D, T) and predictions (B, P, U) to log-probabilities, or scores (B, T, U, C)."""
        heard_BTJ, said_BUJ = self.enc(encoder_outputs.transpose(1, 2)), self.pred(decoder_outputs.transpose(1, 2))
        said_B1UJ = said_BUJ.unsqueeze(1)
        if self.training and self.masking_prob > 0:
            seen_B1U1 = torch.rand(len(said_B1UJ), 1, said_B1UJ.size(2), 1).to(said_B1UJ.device) > self.masking_prob
            said_B1UJ = said_B1UJ * seen_B1U1
        scores_BTUC: Tensor = self.joint_net(heard_BTJ.unsqueeze(2) + said_B1UJ)
        return scores_BTUC.log_softmax(dim=-1) if self.log_softmax else scores_BTUC


class RNNTDecoderJointSSL(nn.Module):
    """Both networks, as a head."""

    needs_labels = True

    def __init__(self, settings: Transducer) -> None:
        super().__init__()
        self.decoder, self.joint = RNNTDecoder(settings.decoder), RNNTJoint(settings.joint)

    def forward(
        self, encoder_output: Float[Tensor, "B D T"], targets: Int[Tensor, "B N"], target_lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B T U C"]:
        """Encodings (B, D, T), and tokens (B, N) with their lengths (B), to log-probabilities (B, T, U, C)."""
        predicted_BPU, _, _ = self.decoder(targets=targets, target_length=target_lengths)
        log_probs_BTUC: Tensor = self.joint(encoder_outputs=encoder_output, decoder_outputs=predicted_BPU)
        return log_probs_BTUC


def over_ways(blank_TU: Float[Tensor, "T U"], token_TU: Float[Tensor, "T U"], start: Tensor) -> Float[Tensor, "T U"]:
    """The logarithm of the sum over all ways from (0, 0) to each (t, u), by blanks along t and tokens along u.

    All that lies on a diagonal is worked out at once. Every sum is rounded as in NeMo, which takes the exponential and
    the logarithm in float64, by the C library, and all else in the type of the scores.

    Args:
        blank_TU, token_TU: the scores of what leads to (t, u) from (t - 1, u) and from (t, u - 1); first ones not used.
        start: that of (0, 0), a scalar.
    """
    steps, positions = blank_TU.shape
    t_T = torch.arange(steps)
    reached_T = torch.cat([start.reshape(1), start.new_full((steps - 1,), -math.inf)])  # each at its u = diagonal - t
    ways_TU = torch.empty_like(blank_TU)
    ways_TU[0, 0] = start
    for diagonal in range(1, steps + positions - 1):
        u_T = diagonal - t_T
        within_T = u_T.clamp(0, positions - 1)  # of those outside no way leads back
        by_token_T = reached_T + token_TU[t_T, within_T]
        by_blank_T = F.pad(reached_T[:-1], (1, 0), value=-math.inf) + blank_TU[t_T, within_T]
        more_T, less_T = torch.maximum(by_token_T, by_blank_T), torch.minimum(by_token_T, by_blank_T)
        rest_T = more_T.new_tensor([math.log1p(math.exp(gap)) for gap in (less_T - more_T).tolist()])
        reached_T = torch.where(less_T.isinf(), more_T, rest_T + more_T)
        is_inside_T = u_T == within_T
        ways_TU[t_T[is_inside_T], u_T[is_inside_T]] = reached_T[is_inside_T]
    return ways_TU


class NegativeLogLikelihood(torch.autograd.Function):
    """Of each utterance's tokens, with its gradient: how likely each blank and token is part of the way, negated."""

    @staticmethod
    def forward(
        ctx: Any,
        log_probs_BTUC: Float[Tensor, "B T U C"],
        labels_BN: Int[Tensor, "B N"],
        steps_B: Int[Tensor, " B"],
        tokens_B: Int[Tensor, " B"],
        blank: int,
    ) -> Float[Tensor, " B"]:
        costs_B = log_probs_BTUC.new_zeros(len(log_probs_BTUC))
        gradient_BTUC = torch.zeros_like(log_probs_BTUC) if ctx.needs_input_grad[0] else None
        for b, (steps, tokens) in enumerate(zip(steps_B.tolist(), tokens_B.tolist(), strict=True)):
            labels_N, u_N = labels_BN[b, :tokens], torch.arange(tokens)
            blank_TU = log_probs_BTUC[b, :steps, : tokens + 1, blank]
            token_TN = log_probs_BTUC[b, :steps, u_N, labels_N]
            before_TU = over_ways(F.pad(blank_TU[:-1], (0, 0, 1, 0)), F.pad(token_TN, (1, 0)), blank_TU.new_zeros(()))
            costs_B[b] = -(before_TU[-1, -1] + blank_TU[-1, -1])
            if gradient_BTUC is None:
                continue
            behind_TU = over_ways(blank_TU.flip(0, 1), F.pad(token_TN, (0, 1)).flip(0, 1), blank_TU[-1, -1]).flip(0, 1)
            all_ways, gradient_TUC = behind_TU[0, 0], gradient_BTUC[b]
            # The order is NeMo's, of rounding and, where a token is the blank's number, of what is written last.
            by_blank_TU = blank_TU[:-1] + (before_TU[:-1] + behind_TU[1:]) - all_ways
            by_token_TN = token_TN + (before_TU[:, :-1] + behind_TU[:, 1:]) - all_ways
            gradient_TUC[: steps - 1, : tokens + 1, blank] = -by_blank_TU.exp()
            gradient_TUC[:steps, u_N, labels_N] = -by_token_TN.exp()
            gradient_TUC[steps - 1, tokens, blank] = -(blank_TU[-1, -1] + before_TU[-1, -1] - all_ways).exp()
        ctx.save_for_backward(gradient_BTUC)
        return costs_B

    @staticmethod
    def backward(ctx: Any, gradient_B: Float[Tensor, " B"]) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient_BTUC,) = ctx.saved_tensors
        return gradient_BTUC * gradient_B.view(-1, 1, 1, 1), None, None, None, None


class RNNTLossNumba(nn.Module):
    """The loss of each utterance, on a CPU."""

    def __init__(self, blank: int) -> None:
        super().__init__()
        self.blank = blank

    def forward(
        self,
        acts: Float[Tensor, "B T U C"],
        labels: Int[Tensor, "B N"],
        act_lens: Int[Tensor, " B"],
        label_lens: Int[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Scores (B, T, U, C), tokens (B, N), and how many steps (B) and tokens (B) count.

        Raises:
            UserError: on a GPU.
        """
        if acts.is_cuda:
            what = "NeMo has kernels of its own for it on a GPU, and the port does not have their bits"
            raise UserError(what, "loss: RNNTLossForSSL", "Give trainer.accelerator=cpu, or another loss.")
        log_probs_BTUC = torch.log_softmax(acts, -1)  # again: the joint network may have left it out
        losses_B: Tensor = NegativeLogLikelihood.apply(log_probs_BTUC, labels, act_lens, label_lens, self.blank)  # type: ignore[no-untyped-call]
        return losses_B


class RNNTLoss(nn.Module):
    """Its mean over the batch."""

    def __init__(self, settings: Rnnt) -> None:
        super().__init__()
        self._loss = RNNTLossNumba(settings.num_classes)

    def forward(
        self,
        log_probs: Float[Tensor, "B T U C"],
        targets: Int[Tensor, "B N"],
        input_lengths: Int[Tensor, " B"],
        target_lengths: Int[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        """Without the steps and tokens that no utterance has; to a scalar.

        Raises:
            UserError: tokens were read that no utterance has.
        """
        targets, steps_B, tokens_B = targets.long(), input_lengths.long(), target_lengths.long()
        log_probs = log_probs.float() if log_probs.dtype in (torch.float16, torch.bfloat16) else log_probs
        steps, tokens = int(steps_B.max()), int(tokens_B.max())
        if log_probs.size(2) != tokens + 1:
            given = log_probs.size(2) - 1
            what = f"NeMo stops, too, where {given} tokens are given and the most of an utterance are {tokens}"
            fix = "Give reduce_ids=true to the loss whose tokens they are."
            raise UserError(what, "targets_from_loss, with RNNTLossForSSL", fix)
        acts, labels = log_probs[:, :steps].contiguous(), targets[:, :tokens].contiguous()
        losses_B: Tensor = self._loss(acts=acts, labels=labels, act_lens=steps_B, label_lens=tokens_B)
        return losses_B.mean()


class RNNTLossForSSL(nn.Module):
    """The loss of a sequence of tokens, or of a transcript, wherever the mask is."""

    needs_labels = True

    def __init__(self, settings: Rnnt) -> None:
        super().__init__()
        self.loss = RNNTLoss(settings)

    def forward(
        self,
        spec_masks: Float[Tensor, "B F _"],
        decoder_outputs: Float[Tensor, "B T U C"],
        targets: Int[Tensor, "B N"],
        decoder_lengths: Int[Tensor, " B"] | None = None,
        target_lengths: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """See `RNNTLoss`; masks are not used."""
        loss: Tensor = self.loss(
            log_probs=decoder_outputs, targets=targets, input_lengths=decoder_lengths, target_lengths=target_lengths
        )
        return loss
