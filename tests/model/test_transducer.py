"""The transducer's loss against a sum over every alignment, written out; how its networks begin; what it refuses."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.config.losses import PredictionNet, Rnnt, RnntDecoder, RnntJoint, Transducer
from nest_ssl.config.section import read
from nest_ssl.config.strict import read_config
from nest_ssl.matrix.variants import TRANSDUCERS
from nest_ssl.model.transducer import LSTMDropout, RNNTDecoderJointSSL, RNNTLossForSSL, RNNTLossNumba

BLANK = 3


def by_alignments(scores_TUC: Tensor, tokens: list[int]) -> Tensor:
    """-log P(tokens): the sum over all orders of tokens and blanks, of which a blank is the last."""
    log_probs, steps, ways = scores_TUC.log_softmax(-1), len(scores_TUC), []
    for places in combinations(range(steps - 1 + len(tokens)), len(tokens)):
        t, u, way = 0, 0, []
        for place in range(steps + len(tokens)):
            is_token = place in places
            way.append(log_probs[t, u, tokens[u] if is_token else BLANK])
            t, u = t + (not is_token), u + is_token
        ways.append(torch.stack(way).sum())
    return -torch.stack(ways).logsumexp(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_the_sum_over_all_alignments_and_so_is_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 4, 4, BLANK + 1, dtype=dtype, requires_grad=True)
    labels = torch.tensor([[2, 0, 2], [1, 1, 0], [0, 0, 0]])
    steps, tokens, weights = [4, 3, 1], [3, 2, 0], torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    losses = RNNTLossNumba(BLANK)(scores, labels, torch.tensor(steps), torch.tensor(tokens))
    cells = [
        (scores[b, :t, : u + 1], labels[b, :u].tolist()) for b, (t, u) in enumerate(zip(steps, tokens, strict=True))
    ]
    wanted = torch.stack([by_alignments(*each) for each in cells])
    found, true = (torch.autograd.grad(each @ weights, scores)[0] for each in (losses, wanted))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert losses.dtype == dtype and torch.allclose(losses, wanted, rtol=tolerance)
    assert torch.allclose(found, true, atol=tolerance) and found[1, 3].abs().sum() == found[2, 1:].abs().sum() == 0


def test_steps_behind_the_longest_utterance_do_not_count_and_tokens_behind_it_are_a_line() -> None:
    torch.manual_seed(0)
    scores, labels, loss = torch.randn(2, 6, 3, BLANK + 1), torch.tensor([[2, 0], [1, 0]]), RNNTLossForSSL(rnnt())
    lengths = {"decoder_lengths": torch.tensor([4, 5]), "target_lengths": torch.tensor([2, 1])}
    masks = torch.zeros(2, 4, 8)
    whole = loss(masks, scores, labels, **lengths)
    each = [by_alignments(scores[0, :4], [2, 0]), by_alignments(scores[1, :5, :2], [1])]
    assert whole.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    with pytest.raises(UserError, match="NeMo stops, too, where 2 tokens are given and the most of an utterance are 1"):
        loss(masks, scores, labels, torch.tensor([4, 5]), torch.tensor([1, 1]))


def rnnt() -> Rnnt:
    return Rnnt(num_classes=BLANK)


def network(**of_decoder: Any) -> RNNTDecoderJointSSL:
    sizes = {"encoder_hidden": 5, "pred_hidden": 4, "joint_hidden": 6, "activation": "relu"}
    prednet = {"pred_hidden": 4, "pred_rnn_layers": 1}
    decoder = RnntDecoder(**{"prednet": PredictionNet(**prednet), "vocab_size": BLANK, **of_decoder})
    joint = read(RnntJoint, {"jointnet": sizes, "num_classes": BLANK, "masking_prob": 0.5})
    return RNNTDecoderJointSSL(Transducer(decoder=decoder, joint=joint))


def test_a_score_hangs_on_the_tokens_before_it_alone() -> None:
    torch.manual_seed(0)
    head, encoded, lengths = network().eval(), torch.randn(1, 5, 3), torch.tensor([3])
    first, second = (head(encoded, torch.tensor([tokens]), lengths) for tokens in ([0, 1, 2], [0, 2, 2]))
    assert first.shape == (1, 3, 4, BLANK + 1) and torch.allclose(first.exp().sum(-1), torch.ones(1, 3, 4))
    assert torch.equal(first[:, :, :2], second[:, :, :2]) and not torch.equal(first[:, :, 2], second[:, :, 2])
    with pytest.raises(UserError, match="at token 4 of a transcript"):
        head(encoded, torch.tensor([[0, 4, 0]]), lengths)


def test_in_training_tokens_are_hidden_from_the_joint_network_and_states_drawn() -> None:
    torch.manual_seed(0)
    head, given = network(), (torch.randn(1, 5, 3), torch.tensor([[0, 1, 2]]), torch.tensor([3]))
    assert not torch.equal(head(*given), head(*given))
    drawing = network(random_state_sampling=True).decoder
    assert not torch.equal(drawing(*given[1:])[0], drawing(*given[1:])[0])
    assert torch.equal(drawing.eval()(*given[1:])[0], drawing(*given[1:])[0])


def test_gates_begin_open_or_as_long_as_a_memory_is_to_last() -> None:
    def biases(**keys: Any) -> list[list[float]]:
        torch.manual_seed(0)
        lstm = LSTMDropout(PredictionNet(pred_hidden=2, pred_rnn_layers=1, **keys)).lstm
        return [lstm.bias_ih_l0.tolist(), lstm.bias_hh_l0.tolist()]

    one, other = biases(forget_gate_bias=3.0, weights_init_scale=0.5)
    assert one[2:4] == [1.5, 1.5] and other[2:4] == [0.0, 0.0] and 0.0 not in one[:2] + other[:2]
    assert biases(forget_gate_bias=None, hidden_hidden_bias_scale=9.0)[1][2:4] != [0.0, 0.0]
    for bias in biases(t_max=20):
        assert bias[4:] == [0.0] * 4 and bias[:2] == [-bias[2], -bias[3]] and 0 < min(bias[2:4]) <= max(bias[2:4]) < 3


OF_CODES, JOINT = "model.loss_list.mlm.", "model.loss_list.mlm.decoder.joint."


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], ""),
        ([f"{OF_CODES}loss.num_classes=255"], "does not fit loss_list.mlm.decoder.joint.num_classes=256"),
        ([f"{OF_CODES}decoder.decoder.vocab_size=255"], "does not fit decoder.vocab_size=255: .*joint.num_classes=256"),
        ([f"{JOINT}jointnet.pred_hidden=31"], "does not fit decoder.prednet=32"),
        ([f"{JOINT}jointnet.encoder_hidden=32"], "does not fit encoder.d_model or feat_out=64"),
        ([f"{JOINT}jointnet.activation=gelu"], "not supported: gelu"),
        ([f"{JOINT}fuse_loss_wer=true"], "gives it no loss"),
        ([f"{JOINT}masking_prob=1.0"], "no token is seen"),
        ([f"{OF_CODES}decoder.decoder.normalization_mode=layer"], "not supported: layer"),
        ([f"~{OF_CODES}loss", f"{OF_CODES}loss={{_target_:nemo.collections.asr.losses.CTCLossForSSL,num_classes:256}}"],
         "networks go with its loss"),
        (["model.loss_list.contrastive.loss.codebook_size=17"], "257 classes cannot name 289 tokens"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(overrides: list[str], said: str) -> None:
    settings = [*TRANSDUCERS[0].settings, *overrides]
    if not said:
        read_config(settings)
        return
    with pytest.raises(UserError, match=said):
        read_config(settings)
