"""The port against NeMo, module by module: the same bits from the same seed, forward and backward."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import ROOT, compose
from nest_ssl.model.encoder.graphs import GraphedEncoder
from nest_ssl.model.nest import NestModel

TINY, RANDOM = ("size=tiny", "run=full"), ("size=tiny", "run=full", "model.encoder.dropout_emb=0.2")
LARGE_LAYER = ("size=large", "run=full", "model.encoder.n_layers=1", "model.num_classes=512")  # 64 channels in a head

VARIANTS: dict[str, tuple[str, ...]] = {
    "quick": ("run=quick",),
    "full": (),
    "dropout_emb": ("model.encoder.dropout_emb=0.2",),
    "squeezed": ("model.squeeze_single=true",),
    "two codebooks": ("model.num_books=2",),
    "shared position biases": ("model.encoder.untie_biases=false",),
    "unscaled input": ("model.encoder.xscaling=false",),
    "no biases": ("model.encoder.use_bias=false", "model.decoder.use_bias=false"),
    "output layer": ("model.encoder.feat_out=48", "model.decoder.feat_in=48"),
    "plain striding": ("model.encoder.subsampling=striding",),
    "factor 4": ("model.encoder.subsampling_factor=4",),
    "split batch": ("model.encoder.subsampling_conv_chunking_factor=2",),
    "causal convolution": ("model.encoder.conv_context_size=causal",),
    "uneven convolution": ("model.encoder.conv_context_size=[5,3]",),
    "other kernel": ("model.encoder.conv_kernel_size=31", "model.encoder.ff_expansion_factor=2"),
    "head of 44": ("model.encoder.d_model=88", "model.encoder.n_heads=2"),
    "separate blocks": ("model.masking.allow_overlap=false", "model.masking.mask_prob=0.4"),
    "mask value": ("model.masking.mask_value=0.5",),
    "nothing frozen": ("model.masking.freeze=false", "model.quantizer.freeze=false"),
    "short position table": ("model.encoder.pos_emb_max_len=100",),
}


@pytest.fixture
def step_batch() -> dict[str, Tensor]:
    """Two utterances of different length, the second's noise shorter than its speech."""
    torch.manual_seed(3)
    clean, noise = torch.randn(2, 48000) * 0.1, torch.randn(2, 48000) * 0.02
    clean[1, 37123:] = 0
    lengths, noise_lengths = torch.tensor([48000, 37123]), torch.tensor([48000, 30000])
    return {
        "input_signal": clean,
        "input_signal_length": lengths,
        "noise_signal": noise,
        "noise_signal_length": noise_lengths,
        "noisy_input_signal": clean + noise,
        "noisy_input_signal_length": noise_lengths,
    }


# --- the whole model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize("overrides", [TINY, LARGE_LAYER, (*TINY, "model.num_books=3")])
def test_construction(pair: Any, same_bits: Any, overrides: tuple[str, ...], seed: int) -> None:
    models = pair(*overrides, seed=seed)
    nemo, nest = models.nemo, models.nest
    same_bits(*models.rng_after)
    for tensors in ("named_parameters", "named_buffers", "state_dict"):
        reference, candidate = dict(getattr(nemo, tensors)()), dict(getattr(nest, tensors)())
        assert list(reference) == list(candidate)
        same_bits(reference, candidate)
    assert [p.requires_grad for p in nemo.parameters()] == [p.requires_grad for p in nest.parameters()]


def test_structure(pair: Any) -> None:
    models = pair(*TINY)

    def describe(model: torch.nn.Module) -> list[tuple[str, str, bool]]:
        return [(name, type(m).__name__, m.training) for name, m in model.named_modules() if name]

    reference = describe(models.nemo)
    reference.remove(("spec_augmentation", "SpectrogramAugmentation", True))  # built and never called; we leave it out
    assert describe(models.nest) == reference


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step(pair: Any, same_bits: Any, training_step: Any, step_batch: Any, variant: str) -> None:
    """Every call of every module: inputs by name, outputs, gradients of outputs, and the order of all of it."""
    models = pair(*TINY, "model.masking.mask_prob=0.03", *VARIANTS[variant])
    for seed in (1, 2):
        reference, candidate = (training_step(model, step_batch, seed) for model in (models.nemo, models.nest))
        assert torch.isfinite(reference["loss"])
        assert len(reference["calls"]) > 80
        same_bits(reference, candidate)
    same_bits(dict(models.nemo.named_buffers()), dict(models.nest.named_buffers()))


@pytest.mark.parametrize("variant", ["full", "shared position biases", "nothing frozen"])
def test_steps_whose_encoder_is_replayed(
    pair: Any, same_bits: Any, seeded: Any, step_batch: Any, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Weights and buffers behind five steps, of which the port replays three (CUDA graphs, stood in for on a CPU)."""
    capture_on_cpu = runpy.run_path(str(ROOT / "tests" / "replayed.py"))["capture_on_cpu"]  # as in conftest.py
    capture_on_cpu(monkeypatch.setattr)
    models = pair(*TINY, "model.masking.mask_prob=0.03", *VARIANTS[variant])
    models.nest.graphed = GraphedEncoder(models.nest.encoder)
    for model in (models.nemo, models.nest):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seeded(1)
        for _ in range(5):
            batch = {name: tensor.clone() for name, tensor in step_batch.items()}
            log_probs, encoded_len, masks, tokens = model.forward(**batch, apply_mask=True)
            loss = model.loss(masks=masks, decoder_outputs=log_probs, targets=tokens, decoder_lengths=encoded_len)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert models.nest.graphed.replayed == 3
    for tensors in ("named_parameters", "named_buffers"):
        same_bits(dict(getattr(models.nemo, tensors)()), dict(getattr(models.nest, tensors)()))


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True])
def test_training_step_of_a_large_layer(
    pair: Any, same_bits: Any, training_step: Any, step_batch: Any, deterministic: bool
) -> None:
    models = pair(*LARGE_LAYER)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        reference, candidate = (training_step(model, step_batch) for model in (models.nemo, models.nest))
    finally:
        torch.use_deterministic_algorithms(False)
    same_bits(reference, candidate)


def test_evaluation(pair: Any, same_bits: Any, seeded: Any, step_batch: Any) -> None:
    """No dither, no dropout, batch statistics at rest; and without masks."""
    models = pair(*TINY)
    for mask in (True, False):
        outputs = []
        for model in (models.nemo.eval(), models.nest.eval()):
            seeded(5)
            outputs.append(model.forward(**step_batch, apply_mask=mask))
        same_bits(*outputs)
    models.nemo.train()  # NeMo shares one activation between all models of a process


def test_features_in_place_of_clean_audio(pair: Any, same_bits: Any, seeded: Any, step_batch: Any) -> None:
    """The only features that NeMo lets in: its type check knows those of noisy audio by another name than `forward`."""
    models = pair(*TINY)
    torch.manual_seed(1)
    inputs = {name: value for name, value in step_batch.items() if name.startswith("noisy")}
    inputs |= {"processed_signal": torch.randn(2, 80, 304), "processed_signal_length": torch.tensor([300, 200])}
    outputs = []
    for model in (models.nemo, models.nest):
        seeded(2)
        outputs.append(model.forward(**{name: value.clone() for name, value in inputs.items()}, apply_mask=True))
    same_bits(*outputs)


# --- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("dither=0.5",),
        ("preemph=null",),
        ("normalize=all_features",),
        ("normalize=null", "log=false"),
        ("log_zero_guard_type=clamp", "log_zero_guard_value=eps", "mag_power=1.0"),
        ("log_zero_guard_value=tiny", "pad_value=-3.0", "pad_to=0"),
        ("lowfreq=50", "highfreq=7000", "mel_norm=null", "window=hamming"),
        ("window_size=null", "n_window_size=480", "n_fft=null", "window=blackman"),
        ("window_stride=0.0125", "n_fft=1023", "window=bartlett"),
    ],
)
def test_features(pair: Any, same_bits: Any, run: Any, overrides: tuple[str, ...]) -> None:
    nemo, nest = pair(*TINY, *(f"model.preprocessor.{o}" for o in overrides)).part("preprocessor")
    torch.manual_seed(0)
    audio = torch.randn(5, 32000) * torch.tensor([1.0, 0.01, 0.0, 1e-6, 0.1]).unsqueeze(1)
    length = torch.tensor([32000, 16001, 20000, 5000, 480])
    for module in (nemo, nest):
        module.train()
    same_bits(*(run(module, input_signal=audio, length=length) for module in (nemo, nest)))
    for module in (nemo, nest):
        module.eval()
    same_bits(*(run(module, input_signal=audio, length=length) for module in (nemo, nest)))


@pytest.mark.parametrize("normalize", ["per_feature", "null"])
def test_features_of_next_to_nothing(pair: Any, same_bits: Any, run: Any, normalize: str) -> None:
    """One frame or none: audio is at least a second long, but noise, whose length noisy audio takes, is not."""
    nemo, nest = pair(*TINY, f"model.preprocessor.normalize={normalize}").part("preprocessor")
    torch.manual_seed(0)
    audio, length = torch.randn(6, 16000), torch.tensor([16000, 0, 1, 159, 160, 320])
    same_bits(*(run(module, input_signal=audio, length=length) for module in (nemo, nest)))


@pytest.mark.parametrize("shape", [("num_classes=8192",), ("num_classes=100", "num_books=3"), ("code_dim=5",)])
def test_tokens(pair: Any, same_bits: Any, run: Any, shape: tuple[str, ...]) -> None:
    nemo, nest = pair(*TINY, *(f"model.quantizer.{o}" for o in shape)).part("quantizer")
    torch.manual_seed(0)
    for features in (torch.randn(4, 80, 320), torch.randn(2, 80, 64) * 1e-30, torch.randn(1, 80, 8) * 1e6):
        same_bits(*(run(module, input_signal=features) for module in (nemo, nest)))


@pytest.mark.parametrize("size", [128, 8192])
def test_tokens_of_silence_and_nonsense(pair: Any, same_bits: Any, run: Any, size: int) -> None:
    """Silence projects to zero, and its token is decided by rounding alone."""
    nemo, nest = pair(*TINY, f"model.quantizer.num_classes={size}").part("quantizer")
    torch.manual_seed(0)
    half_silent = torch.randn(3, 80, 320)
    half_silent[..., 100:] = 0
    for features in (half_silent, torch.zeros(1, 80, 16), torch.full((1, 80, 16), torch.nan), half_silent * 1e38):
        same_bits(*(run(module, input_signal=features) for module in (nemo, nest)))


def test_tokens_of_equal_and_nearly_equal_codes(pair: Any, same_bits: Any, run: Any) -> None:
    nemo, nest = pair(*TINY, "model.quantizer.num_classes=1024").part("quantizer")
    torch.manual_seed(0)
    noise = torch.randn(1024, 16, dtype=torch.float64) * torch.logspace(-17, -8, 1024, dtype=torch.float64).unsqueeze(1)
    for module in (nemo, nest):
        codes = module.codebooks.data[0]
        codes[1::2] = codes[0::2]
        codes[0::4] += noise[0::4]
    features = torch.randn(8, 80, 800)
    same_bits(*(run(module, input_signal=features) for module in (nemo, nest)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair: Any, same_bits: Any, training_step: Any, step_batch: Any, dtype: torch.dtype) -> None:
    """`trainer.precision=bf16-true`: the codebooks too are in half precision, and many codes are equally near."""
    models = pair(*TINY, "model.masking.mask_prob=0.03")
    reference, candidate = (training_step(model.to(dtype), step_batch) for model in (models.nemo, models.nest))
    assert len(reference["calls"]) > 80
    same_bits(reference, candidate)


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("probability", [0.01, 0.2, 0.95])
def test_masks(pair: Any, same_bits: Any, run: Any, overlap: str, probability: float) -> None:
    options = (f"model.masking.allow_overlap={overlap}", f"model.masking.mask_prob={probability}")
    nemo, nest = pair(*TINY, *options).part("mask_processor")
    feats, lengths = torch.randn(6, 80, 304), torch.tensor([304, 300, 81, 40, 39, 1])
    for seed in range(5):
        same_bits(*(run(m, input_feats=feats, input_lengths=lengths, seed=seed) for m in (nemo, nest)))


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize(("block_size", "ratio"), [(40, 0.8), (15, 0.3), (40, 2.0), (3, 0.8)])
def test_masks_of_short_audio(pair: Any, same_bits: Any, run: Any, overlap: str, block_size: int, ratio: float) -> None:
    """Before 3.0 audio of which a block is `max_mask_ratio` gets one block of 8 frames; rounding decides at 50."""
    options = (f"allow_overlap={overlap}", f"block_size={block_size}", f"max_mask_ratio={ratio}", "mask_prob=0.1")
    nemo, nest = pair(*TINY, *(f"model.masking.{option}" for option in options)).part("mask_processor")
    feats, lengths = torch.randn(7, 80, 304), torch.tensor([304, 50, 51, 49, 7, 1, 160])
    for seed in range(3):
        same_bits(*(run(m, input_feats=feats, input_lengths=lengths, seed=seed) for m in (nemo, nest)))


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_gradient_of_a_mask_that_learns(pair: Any, same_bits: Any, run: Any, overlap: str, probability: float) -> None:
    options = ("freeze=false", f"allow_overlap={overlap}", f"mask_prob={probability}")
    nemo, nest = pair(*TINY, *(f"model.masking.{option}" for option in options)).part("mask_processor")
    inputs = {"input_feats": torch.randn(3, 80, 304), "input_lengths": torch.tensor([304, 211, 60])}
    for seed in range(3):
        same_bits(*(run(m, **inputs, wants_grad=("input_feats",), seed=seed) for m in (nemo, nest)))


@pytest.mark.parametrize(
    ("failing", "error", "lengths", "options"),
    [
        ("2.4", UnboundLocalError, [30, 112], ()),  # a short utterance takes the offset of the one before it
        ("2.7", IndexError, [100, 112], ("mask_prob=0.5", "block_size=48")),  # a block may end beyond the last frame
    ],
)
def test_batches_that_an_old_nemo_cannot_mask(
    pair: Any, same_bits: Any, run: Any, release: str, failing: str, error: Any, lengths: list[int], options: Any
) -> None:
    options = ("allow_overlap=false", "mask_prob=0.1", *options)
    nemo, nest = pair(*TINY, *(f"model.masking.{option}" for option in options)).part("mask_processor")
    inputs = {"input_feats": torch.randn(2, 80, 112), "input_lengths": torch.tensor(lengths)}
    failures = 0
    for seed in range(20):
        try:
            reference = run(nemo, **inputs, seed=seed)
        except error:
            failures += 1
            with pytest.raises(UserError, match=f"NeMo {failing} fails on such a batch"):
                run(nest, **inputs, seed=seed)
        else:
            same_bits(reference, run(nest, **inputs, seed=seed))
    assert bool(failures) == (release == failing)


@pytest.mark.parametrize("overrides", [TINY, LARGE_LAYER, (*TINY, "model.encoder.subsampling=striding")])
def test_subsampling(pair: Any, same_bits: Any, run: Any, overrides: tuple[str, ...]) -> None:
    nemo, nest = pair(*overrides).part("encoder.pre_encode")
    for frames, lengths in ((304, [304, 211]), (64, [50]), (16, [16, 1, 9])):
        torch.manual_seed(frames)
        x = torch.randn(len(lengths), 80, frames).transpose(1, 2)  # a view, as the encoder gives it
        inputs = {"x": x, "lengths": torch.tensor(lengths)}
        same_bits(*(run(module, **inputs, wants_grad=("x",)) for module in (nemo, nest)))


def test_positions(pair: Any, same_bits: Any, run: Any) -> None:
    nemo, nest = pair(*RANDOM).part("encoder.pos_enc")
    for frames in (1, 2, 37):
        x = torch.randn(2, frames, 64)
        same_bits(*(run(module, x=x, cache_len=0, wants_grad=("x",)) for module in (nemo, nest)))


@pytest.mark.parametrize("overrides", [TINY, LARGE_LAYER, (*TINY, *VARIANTS["head of 44"])])
@pytest.mark.parametrize("lengths", [[38, 30], [1, 1], [7, 0], [101]])
def test_attention(pair: Any, same_bits: Any, run: Any, overrides: tuple[str, ...], lengths: list[int]) -> None:
    models = pair(*overrides)
    frames, width = max(lengths), models.cfg.model.encoder.d_model
    torch.manual_seed(0)
    valid = torch.arange(frames) < torch.tensor(lengths).unsqueeze(1)
    inputs = {name: torch.randn(len(lengths), frames, width) for name in ("query", "key", "value")}
    inputs["mask"] = ~(valid.unsqueeze(2) & valid.unsqueeze(1))
    inputs["pos_emb"] = torch.randn(1, 2 * frames - 1, width)
    wants_grad = ("query", "key", "value", "pos_emb")
    modules = models.part("encoder.layers.0.self_attn")
    for mask in (inputs["mask"], None):
        same_bits(*(run(module, **{**inputs, "mask": mask}, wants_grad=wants_grad) for module in modules))


@pytest.mark.parametrize("overrides", [TINY, LARGE_LAYER])
def test_layer_and_its_parts(pair: Any, same_bits: Any, run: Any, overrides: tuple[str, ...]) -> None:
    models = pair(*overrides)
    width = models.cfg.model.encoder.d_model
    torch.manual_seed(0)
    x, pad_mask = torch.randn(2, 38, width), torch.arange(38) >= torch.tensor([[38], [25]])
    valid = ~pad_mask
    masks = {"att_mask": ~(valid.unsqueeze(2) & valid.unsqueeze(1)), "pad_mask": pad_mask}
    layer = "encoder.layers.0"
    for name, inputs in {
        f"{layer}.feed_forward1": {},
        f"{layer}.conv": {"pad_mask": pad_mask},
        layer: {**masks, "pos_emb": torch.randn(1, 75, width)},
    }.items():
        same_bits(*(run(module, x=x, **inputs, wants_grad=("x",)) for module in models.part(name)))


@pytest.mark.parametrize("overrides", [TINY, RANDOM, (*TINY, "model.encoder.pos_emb_max_len=20")])
def test_encoder(pair: Any, same_bits: Any, run: Any, overrides: tuple[str, ...]) -> None:
    nemo, nest = pair(*overrides).part("encoder")
    for frames, lengths in ((304, [304, 211]), (48, [48]), (128, [100, 3, 128])):
        torch.manual_seed(frames)
        inputs = {"audio_signal": torch.randn(len(lengths), 80, frames), "length": torch.tensor(lengths)}
        same_bits(*(run(module, **inputs, wants_grad=("audio_signal",)) for module in (nemo, nest)))


@pytest.mark.parametrize("overrides", [(), ("model.squeeze_single=true",), ("model.num_books=3",)])
def test_decoder_and_loss(pair: Any, same_bits: Any, run: Any, overrides: tuple[str, ...]) -> None:
    models = pair(*TINY, *overrides)
    torch.manual_seed(0)
    encoded = torch.randn(2, 38, 64).transpose(1, 2)
    decoded = [run(m, encoder_output=encoded, wants_grad=("encoder_output",)) for m in models.part("decoder")]
    same_bits(*decoded)

    log_probs = decoded[0]["output"][0]
    targets = torch.randint(0, 128, (2, 36) if log_probs.dim() == 3 else (2, 36, log_probs.size(3)))
    blocks = (torch.rand(2, 1, 38).repeat_interleave(8, dim=2) < 0.4).float().expand(2, 80, 304)
    for masks in (blocks, torch.zeros(2, 80, 304)):  # with nothing masked the loss is NaN, in NeMo too
        inputs = {"masks": masks, "decoder_outputs": log_probs, "targets": targets}
        same_bits(*(run(m, **inputs, wants_grad=("decoder_outputs",)) for m in models.part("loss")))


@pytest.mark.parametrize("mode", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "null"])
def test_decoder_initialisation(pair: Any, same_bits: Any, mode: str) -> None:
    nemo, nest = pair(*TINY, f"model.decoder.init_mode={mode}").part("decoder")
    same_bits(nemo.state_dict(), nest.state_dict())


# --- what NeMo itself cannot do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["model.quantizer.dist_fn=cosine", "model.mask_position=post_conv"])
def test_what_we_refuse_because_nemo_fails(pair: Any, step_batch: Any, override: str) -> None:
    """If a later release mends these, the port has to learn them."""
    pair(*TINY)  # skips where there is no NeMo
    from train_nemo import build_model

    cfg = compose((*TINY, override))
    cfg.model.train_ds = cfg.model.validation_ds = None
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|scalar type"):
        build_model(cfg).forward(**step_batch, apply_mask=True)
    with pytest.raises(UserError, match="not supported"):
        NestModel(cfg.model)
