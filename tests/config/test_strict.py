"""A mistake in a configuration, in a file or an override, is one line with what to do, before training."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import CONF, compose
from nest_ssl.config.optim import OPTIMIZERS, SCHEDULES, TORCH_CLASSES, Sched
from nest_ssl.config.schema import Experiment
from nest_ssl.config.section import NEMO, read
from nest_ssl.config.strict import read_config
from nest_ssl.config.trainer import Trainer

FILE = "nest_fast-conformer.yaml"


def refusal(*overrides: str, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        read_config(overrides, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A copy of our conf/ that a test may edit."""
    shutil.copytree(CONF, tmp_path / "conf")
    return tmp_path / "conf"


def edit(folder: Path, old: str, new: str) -> int:
    """Replace the first `old` in the main file; its line."""
    text = (folder / FILE).read_text()
    assert old in text
    (folder / FILE).write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large", "xlarge", "xxlarge"])
@pytest.mark.parametrize("run", ["quick", "full", "train"])
def test_our_own_configuration_is_right(size: str, run: str) -> None:
    cfg, settings = read_config([f"size={size}", f"run={run}"])
    assert settings.model.encoder.d_model == cfg.model.encoder.d_model
    assert settings.seed == 42 and settings.model.optim.settings() == {
        "lr": 5.0, "betas": [0.9, 0.98], "weight_decay": cfg.model.optim.weight_decay
    }  # fmt: skip


# --- files


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed: 42", "sead: 7", "unknown key: sead ({place}). Did you mean seed?"),
        ("max_duration: 60.0", "max_durations: 0.5",
         "unknown key: model.train_ds.max_durations ({place}). Did you mean model.train_ds.max_duration?"),
        ("n_layers: 17", "n_layer: 17", "unknown key: model.encoder.n_layer ({place}). Did you mean"),
        ("block_size: 40", "block_size: '40'", "text in place of a value: '40': model.masking.block_size ({place})"),
        ("num_nodes: 1", "gpus: 1", "unknown key: trainer.gpus ({place}). Today it is trainer.devices."),
        ("mask_threshold", "mask_treshold", "unknown key: model.loss.mask_treshold ({place}). Did you mean model.loss"),
        ("name: adamw", "name: lion", "not supported: lion: model.optim.name ({place}). Exact with NeMo's are: adamw"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_file_and_line(edited: Path, old: str, new: str, told: str) -> None:
    line = edit(edited, old, new)
    assert told.format(place=f"{edited / FILE}, line {line}") in refusal(folder=edited)


def test_a_mistake_in_a_groups_file_names_that_file(edited: Path) -> None:
    (edited / "size" / "tiny.yaml").write_text("# @package _global_\nmodel:\n  encoder: {n_layer: 2}\n")
    assert f"model.encoder.n_layer ({edited / 'size' / 'tiny.yaml'}, line 3)" in refusal("size=tiny", folder=edited)


def test_a_key_is_not_known_because_the_file_has_it(edited: Path) -> None:
    edit(edited, "seed: 42", "sead: 7")
    assert "unknown key: sead. Did you mean seed?" in refusal("sead=9", folder=edited)


def test_a_key_that_others_refer_to_is_the_authors_own(edited: Path) -> None:
    edit(edited, "code_dim: 16", "my_dim: 16\n  code_dim: ${model.my_dim}")
    assert read_config([], edited)[1].model.quantizer.code_dim == 16
    edit(edited, "${model.my_dim}", "16")
    assert "unknown key: model.my_dim" in refusal(folder=edited)


def test_a_copy_of_our_configuration_takes_sizes(edited: Path) -> None:
    for override in ("size=tiny", "+size=tiny"):
        assert read_config([override], edited)[1].model.encoder.d_model == 64


def test_a_folder_called_nemo_is_no_group(edited: Path) -> None:
    """A recording nemo/, or a folder of any other key's name, may lie beside the file."""
    (edited / "nemo").mkdir()
    (edited / "seed").mkdir()
    settings = read_config(["nemo=2.7", "++seed=3"], edited)[1]
    assert settings.nemo == "2.7" and settings.seed == 3


@pytest.mark.parametrize(
    ("file", "cls"),
    [
        ("loss_list: {contrastive: {}}", "SpeechEncDecSelfSupervisedModel"),
        ("tokenizer: {dir: x}", "ASR models"),
    ],
)
def test_the_recipe_of_another_model_says_so(edited: Path, file: str, cls: str) -> None:
    edit(edited, "  num_books: 1", f"  num_books: 1\n  {file}")
    assert f"This file is for NeMo's {cls}" in refusal(folder=edited)


# --- overrides


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("sed=1", "seed"),
        ("trainer.max_epoch=1", "trainer.max_epochs"),
        ("+trainer.limit_train_batch=1", "trainer.limit_train_batches"),
        ("model.encoder.nlayers=3", "model.encoder.n_layers"),
        ("++model.train_ds.batchsize=3", "model.train_ds.batch_size"),
        ("model.train_ds.batch_augmentor.probb=1", "model.train_ds.batch_augmentor.prob"),
        ("model.optim.weight_decy=1", "model.optim.weight_decay"),
        ("model.optim.sched.warmup=1", "model.optim.sched.warmup_"),
        ("model.optim.sched.decay=1", "model.optim.sched.decay_rate"),
        ("model.optim.nestrov=true", "model.optim.nesterov"),
        ("n_layers=3", "model.encoder.n_layers"),
        ("model.preprocessor.dithr=0", "model.preprocessor.dither"),
        ("modle.encoder.n_layers=1", "model"),
        ("exp_manager.exp_dri=x", "exp_manager.exp_dir"),
        ("exp_manager.checkpoint_callback_params.save_topk=1", "exp_manager.checkpoint_callback_params.save_top_k"),
        ("init_from_nemo_model.a.pth=x", "init_from_nemo_model.a.path"),
    ],
)
def test_misspelt_keys(override: str, nearest: str) -> None:
    assert f"Did you mean {nearest}" in refusal(override)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "+seed=0", "seed=4294967295", "size=tiny", "++run=full", "trainer.limit_val_batches=0",
        "+trainer.gradient_clip_algorithm=norm", "trainer.devices=0,1", "trainer.precision=bf16-mixed",
        "model.encoder.dropout=0.2", "model.train_ds.channel_selector=0", "model.masking.max_mask_ratio=0.5",
        "exp_manager.exp_dir=/tmp/x", "trainer={}", "~trainer.benchmark", "model.optim.eps=1e-9",
        "model.optim.sched.args.anything=1", "~model.optim.sched", "model.train_ds.noise_manifest=null",
        "model.optim_param_groups.encoder.lr=0.1", "model.validation_ds=null", "~model.validation_ds",
        "init_from_nemo_model.a.path=x", "model.train_ds.manifest_filepath=[a.json,b.json]",
    ],
)  # fmt: skip
def test_right_settings(override: str) -> None:
    read_config([override])


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999", "null", "1.5", "true", "abc", "", "[1,2]"])
def test_a_seed_is_a_whole_number_that_lightning_takes(seed: str) -> None:
    """All of these train with another seed than the one that is recorded."""
    assert "seed. Supported: any whole number from 0 to 4294967295." in refusal(f"seed={seed}")


@pytest.mark.parametrize(
    "override", ["seed=1,2", "seed=range(1,3)", "model.encoder.n_layers=choice(1,2)", "name=choice(a,b)",
                 "bad_audio=stop,skip", "output_dir=glob(*)"]
)  # fmt: skip
def test_a_sweep_is_not_an_experiment(override: str) -> None:
    assert f"a sweep is not an experiment: {override}" in refusal(override)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        # values
        ('seed="7"', "quoted text in place of a value: '7': seed. Write 7 without the quotes."),
        ('model.optim.betas="[0.9,0.98]"', "Write [0.9,0.98] without the quotes."),
        ("model.encoder.conv_kernel_size=8", "a kernel of 8 does not fit the context null"),
        ("model.encoder.n_heads=3", "d_model 512 is no multiple of n_heads 3"),
        ("model.encoder.n_layers=0", "model.encoder.n_layers. Supported: any whole number from 1."),
        ("model.preprocessor.window=null", "Supported: hann, hamming, blackman, bartlett."),
        ("model.preprocessor.pad_to=0", "it does not fit model.encoder.subsampling_factor=8: model.prep"),
        ("model.preprocessor.pad_to=1", "Give a multiple of 8"),
        ("model.loss.combine_time_steps=4", "it does not fit model.encoder.subsampling_factor=8: model.loss"),
        ("model.decoder.feat_in=80", "it does not fit model.encoder.d_model or feat_out=512: model.decoder.feat_in=80"),
        ("model.decoder.num_classes=16", "it does not fit model.quantizer.num_classes=8192"),
        ("model.masking.feat_in=64", "it does not fit model.preprocessor.features=80: model.masking.feat_in=64"),
        ("model.loss.num_decoders=2", "Give 1."),
        ("trainer.precision=13", "trainer.precision. Supported: 16, 32, 64, bf16"),
        ("trainer.accelerator=tpu", "Supported: auto, cpu, gpu, cuda, null."),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches. Supported: any whole number from 1."),
        ("trainer.accumulate_grad_batches={0:2}", "trainer.accumulate_grad_batches"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps"),
        ("trainer.max_steps=0", "trainer.max_steps. Supported: -1, any whole number from 1, null."),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches"),
        ("no_masked_token=0", "no_masked_token. Supported: nan, zero."),
        ("bad_audio=ignore", "bad_audio. Supported: stop, skip."),
        ("batches=0", "batches. Supported: any whole number from 1, null."),
        ("save_steps=0-", "steps that cannot be read: save_steps=0-"),
        # what NeMo itself stops at
        ("model.encoder.conv_dual_mode=true", "unknown key: model.encoder.conv_dual_mode. Leave it out."),
        ("model.spec_augment=null", "a section is null: model.spec_augment"),
        ("~model.spec_augment", "a section is missing: model.spec_augment"),
        ("model.test_ds={manifest_filepath:x}", "Remove it: ~model.test_ds."),
        ("+model.train_ds.augmentor=gain", "Give each perturbation by its name."),
        ("+model.train_ds.augmentor=[{gain:1}]", "Give each perturbation by its name."),
        ("+model.train_ds.augmentor={white_noise:{prob:1,rng:-1}}", "augmentor.white_noise.rng. Supported: any whole"),
        ("+model.train_ds.augmentor={white_noise:{prob:1,min_level:-3e9}}", "augmentor.white_noise.min_level"),
        ("model.train_ds.batch_augmentor=null", "no batch augmentor is named: model.train_ds.batch_augmentor=null"),
        ("model.train_ds.noise_manifest=", "For no noise write noise_manifest=null."),
        ("model.train_ds=null", "a section is null: model.train_ds"),
        ("~model.train_ds", "a section is missing: model.train_ds"),
        ("~model.num_books", "a value cannot be resolved: model.quantizer.num_books"),
        # what the port does not have
        ("model.train_ds.is_tarred=true", "no tar files are given"),
        ("model.optim.name=novograd", "Exact with NeMo's are: adamw, adam, sgd."),
        ("model.optim={name:novograd,luc:true}", "not supported: novograd: model.optim.name. Exact with NeMo's are"),
        ("model.optim._target_=torch.optim.RAdam", "not supported: torch.optim.RAdam: model.optim._target_"),
        ("model.optim.sched.name=PolynomialDecayAnnealing", "Exact with NeMo's are: NoamAnnealing, NoamHoldAnnealing"),
        ("model.optim.sched.name=CosineAnnealing", "Remove it: ~model.optim.sched.d_model."),
        ("model.optim.sched=null", "For a constant rate remove it: ~model.optim.sched."),
        ("model.optim.sched.warmup_ratio=0.1", "warmup_steps and warmup_ratio are both given"),
        ("model.optim.momentum=0.9", "adamw does not take momentum"),
        ("model.optim_param_groups.encodr.lr=0.1", "Choose one of: preprocessor, encoder"),
        ("exp_manager.create_mlflow_logger=true", "Leave it out, or set it to false."),
        ("exp_manager.ema.enable=true", "Leave it out, or set it to false."),
        ("init_from_pretrained_model=x", "Nothing is fetched from a network"),
        ("model.encoder._target_=nemo.collections.asr.modules.RNNEncoder", "Only NeMo's ConformerEncoder is."),
        # the spelling of overrides
        ("name=${oc.env:NOPE}", "a value cannot be resolved: name"),
        ("name=${model.nope}", "a value cannot be resolved: name"),
        ("name=${foo:1}", "a value cannot be resolved: name"),
        ("name=${name}", "a value cannot be resolved: name"),
        ("model.optim.lr=???", "a value is missing: model.optim.lr. Give it: model.optim.lr=..."),
        ("~run", "a group that cannot be left out"),
        ("~trainer.nope", "no such key to remove: ~trainer.nope"),
        ("hydra.run.dir=x", "Hydra's own settings are not used"),
        ("hydra/launcher=x", "Hydra's own settings are not used"),
        ("trainer.checkpoint_callback=false", "Today it is trainer.enable_checkpointing."),
        ("trainer.resume_from_checkpoint=x", "Today it is exp_manager.resume_from_checkpoint."),
    ],
)  # fmt: skip
def test_what_cannot_be_right(override: str, told: str) -> None:
    assert told in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("recipe=wav2vec-bert",), "it computes NEST and BEST-RQ with a Conformer alone: cuda_graphs=true"),
        (
            ("trainer.accumulate_grad_batches=2",),
            "not offered with cuda_graphs=true: trainer.accumulate_grad_batches=2",
        ),
    ],
)
def test_what_is_not_replayed(overrides: tuple[str, ...], said: str) -> None:
    assert read_config(["cuda_graphs=true"]) and read_config(["cuda_graphs=true", "numerics=fast"])
    assert said in refusal("cuda_graphs=true", *overrides)


def test_weights_come_from_one_place() -> None:
    assert "only one source of weights" in refusal("init_from_nemo_model=a", "init_from_ptl_ckpt=null")


def test_an_augmentor_that_is_left_out_is_left_out_of_validation_too() -> None:
    """The file's validation refers to training's."""
    settings = read_config(["~model.train_ds.batch_augmentor"])[1]
    assert settings.model.train_ds.batch_augmentor is None
    assert settings.model.validation_ds is not None and settings.model.validation_ds.batch_augmentor is None


def test_home_in_paths_that_are_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/me")
    cfg, settings = read_config(["output_dir=~/x", "exp_manager.exp_dir=~/y"])
    assert cfg.output_dir == settings.output_dir == "/people/me/x"
    assert settings.exp_manager is not None and settings.exp_manager.exp_dir == "/people/me/y"


# --- the schema against what it describes


def test_the_keys_of_lightning() -> None:
    from lightning.pytorch import Trainer as Lightning

    ours = {"stall_timeout"}
    assert Trainer.known() == (set(inspect.signature(Lightning.__init__).parameters) | ours) - {"self"}
    assert not Trainer.known() & Trainer.RENAMED.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_keys_of_optimizers(name: str) -> None:
    taken = set(inspect.signature(getattr(torch.optim, TORCH_CLASSES[name])).parameters) - {"params", "lr"}
    assert OPTIMIZERS[name] == taken


def test_the_keys_of_schedules() -> None:
    """Each is a schedule of ours, and what it takes is a key."""
    from nest_ssl.train import schedules

    assert schedules.SCHEDULES.keys() == SCHEDULES.keys()
    assert frozenset().union(*SCHEDULES.values()) <= Sched.model_fields.keys()


def test_numbers_keep_their_type() -> None:
    """NeMo's optimizer and its recorded state hold 5 where 5 was written."""
    cfg = compose(["model.optim.lr=5", "model.optim.weight_decay=0"])
    values = read(Experiment, cfg).model.optim.settings()
    assert [type(values[key]) for key in ("lr", "weight_decay")] == [int, int]


def test_settings_cannot_be_edited() -> None:
    settings = read_config()[1]
    with pytest.raises(ValueError, match="frozen"):
        settings.model.encoder.d_model = 3  # type: ignore[misc]


def test_plain_mistakes_are_found_before_torch_is_imported() -> None:
    code = (
        "import sys; from nest_ssl.config.strict import read_config; read_config(['size=tiny']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'librosa')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_targets_are_nemos() -> None:
    cfg = compose()
    for name in ("preprocessor", "spec_augment", "masking", "quantizer", "encoder", "decoder", "loss"):
        assert cfg.model[name]._target_.startswith(NEMO)
