"""One case: the port with a fault in it is trained and recorded, the evidence is gathered, and the two are compared.

The reference is the port as it is, recorded once for each experiment (`RECIPES`), with its noise floor and in float64.
What `nest-ssl explain` does in several processes is done here in the one that was forked for the case.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import open_evidence
from nest_ssl.compare.operators import bind
from nest_ssl.compare.ranks import OverRanks, compare_over_ranks
from nest_ssl.compare.schedules import bind_rates
from nest_ssl.recording import evidence as files
from nest_ssl.recording.evidence import NoiseFloor, read_evidence, seal_of, write_evidence
from nest_ssl.recording.layout import rank_folder, step_folder
from nest_ssl.recording.ranks import write_ranks
from nest_ssl.recording.reader import Recording, open_recording, read_index
from nest_ssl.run.candidate import replay_recording
from nest_ssl.run.experiment import run
from nest_ssl.run.nest_report import explain_nest
from nest_ssl.run.ranks import FOLDER
from nest_ssl.run.subject import Subject
from nest_ssl.selftest.cases import Case, Edit, Recipe
from nest_ssl.selftest.planting import plant

SMALL = [
    "size=tiny",
    *(f"model.{part}_ds.{key}" for part in ("train", "validation") for key in ("num_workers=0", "pin_memory=false")),
    *("model.train_ds.batch_size=4", "model.validation_ds.batch_size=2", "trainer.accelerator=cpu"),
]
ONE_STEP = ["batches=1", "save_steps=0", "trainer.limit_val_batches=0", "operators=true"]
LISTED, MODULES = "model.loss_list", "nemo.collections.asr.modules"
BLOCK = "filters:{},repeat:{},kernel:[{}],stride:[{}],residual:{},dilation:[1],dropout:0.0,separable:true,se:true"
BLOCKS = [(48, 1, 5, 2, "false"), *[(48, 1, 3, 2, "false")] * 2, (48, 2, 5, 1, "true"), (64, 1, 1, 1, "false")]
JASPER = ",".join(f"{{{BLOCK.format(*each)}}}" for each in BLOCKS)
CITRINET = f"_target_:{MODULES}.ConvASREncoder,feat_in:80,activation:relu,jasper:[{JASPER}]"
# The experiments, each the smallest in which its faults can be seen. The batch of four has padding.
RECIPES: dict[Recipe, list[str]] = {
    # Nothing but weights and masks is random.
    "plain": [*SMALL, *ONE_STEP],
    # NeMo's whole recipe: augmentation, dither, dropout; two steps and a validation, and the schedule beyond.
    "full": [*SMALL, "run=full", "batches=2", "save_steps=0,1", "trainer.limit_val_batches=1", "learning_rates=30000",
             "operators=true"],
    "accumulated": [
        *SMALL, "batches=4", "save_steps=0-3", "model.train_ds.batch_size=2", "trainer.limit_val_batches=0",
        "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.01",
    ],
    "half": [*SMALL, *ONE_STEP, "trainer.precision=bf16-mixed"],
    # Both go on behind the first step of `EARLIER`, or begin with the weights that it had then.
    "resumed": [*SMALL, "run=full", "batches=2", "save_steps=1", "trainer.limit_val_batches=0", "learning_rates=100"],
    "started": [*SMALL, *ONE_STEP],
    # Two processes; each is compared with its like, by the recordings alone.
    "ranks": [
        *SMALL, "batches=2", "save_steps=0,1", "trainer.limit_val_batches=0", "model.train_ds.batch_size=2",
        "trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true",
    ],
    # Two losses, codes that are learned, masks in patches, attention within chunks.
    "listed": [
        *SMALL, *ONE_STEP, "recipe=wav2vec-bert", f"{LISTED}.contrastive.loss.quantized_targets=true",
        f"{LISTED}.contrastive.loss.codebook_size=16", f"{LISTED}.mlm.is_active=true",
        f"{LISTED}.mlm.decoder.num_classes=256", "model.encoder.att_context_style=chunked_limited",
        "model.encoder.att_context_size=[8,3]", f"model.encoder._target_={MODULES}.ConformerEncoderAdapter",
    ],
    # Blocks of convolutions, some with residuals, all weighed by channel.
    "convolutional": [
        *SMALL, *ONE_STEP, "~model.encoder", f"model.encoder={{{CITRINET}}}", "model.decoder.feat_in=64",
        *(f"model.{part}.combine_time_steps=8" for part in ("quantizer", "loss")), "model.optim.sched.d_model=64",
    ],
    # Tokens of the speech itself; stacked frames, and attention within a window and to a few global tokens.
    "local": [
        *SMALL, *ONE_STEP, "recipe=best-rq", "model.encoder.subsampling=stacking_norm",
        "model.encoder.self_attention_model=rel_pos_local_attn", "model.encoder.att_context_size=[8,4]",
        "model.encoder.global_tokens=2", "model.encoder.global_tokens_spacing=3",
        "model.encoder.global_attn_separate=true",
    ],
}  # fmt: skip
EARLIER = [*SMALL, "run=full", "batches=2", "save_steps=none", "trainer.limit_val_batches=0"]
KEEP_NOTHING = {"create_tensorboard_logger": "false", "create_checkpoint_callback": "false"}
EACH_STEP = "{every_n_train_steps: 1, save_top_k: -1, monitor: null, filename: '{step}'}"
FLOAT64 = "trainer.precision=64-true"
RANKS, RANK_SECONDS = 2, 120.0  # how many, and how long one may take
REPEATS = 8  # that make the noise floor
REFERENCE, CANDIDATE, CHECKPOINTS = "reference", "candidate", "checkpoints"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Strict):
    """Where a difference was said to be born; sizes are relative."""

    phase: str
    module: str | None
    size: float | None = None
    in_float64: float | None = None
    floors: float | None = None


class Outcome(_Strict):
    """What the comparison of one case, at one size, ended with.

    Args:
        key: of what it depends on.
        error: why there is no verdict.
        kinds: of fault that the report names, in causal order.
        lacking: why it was not shown to be rounding.
    """

    key: str
    name: str
    size: float | None
    verdict: str = ""
    exit_code: int = 0
    born: tuple[Place, ...] = ()
    kinds: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""


def trainer_under_test() -> Subject:
    """The port, as its own script trains it."""
    subject: Subject = runpy.run_path(str(ROOT / "scripts" / "train_nest.py"))["NEST"]
    return subject


def _recorded(subject: Subject, folder: Path, *overrides: str) -> Recording:
    run(subject, [*overrides, f"output_dir={folder}", "overwrite=true"])
    return _opened(folder)


def _opened(folder: Path) -> Recording:
    """A recording that this command has made and keeps to itself: its tensors need not be hashed once more."""
    return Recording(folder, read_index(folder), verified=True)


def overrides_of(recipe: Recipe, prepared: Path, folder: Path) -> list[str]:
    """What an experiment is composed of.

    Args:
        prepared: the recipe's folder of `record_reference`.
        folder: for what a resumed training keeps of itself.
    """
    checkpoint = prepared / CHECKPOINTS / "step=1.ckpt"
    if recipe == "started":
        return [*RECIPES[recipe], f"init_from_ptl_ckpt={checkpoint}"]
    if recipe == "resumed":
        keeps = {"explicit_log_dir": folder, "resume_from_checkpoint": checkpoint, **KEEP_NOTHING}
        return [*RECIPES[recipe], *(f"exp_manager.{key}={value}" for key, value in keeps.items())]
    return RECIPES[recipe]


def record_ranks(subject: Subject, folder: Path, overrides: Sequence[str], edits: Sequence[Edit] = ()) -> None:
    """Train with edits in several processes, which are forks of this one, as `run.ranks` starts them.

    Raises:
        UserError: one of them does not train.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def train(rank: int) -> None:
        place = {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), FOLDER: str(folder)}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", **place})
        plant(edits)
        sys.exit(run(subject, [*overrides, f"output_dir={folder}"]))

    processes = [multiprocessing.get_context("fork").Process(target=train, args=(rank,)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + RANK_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    if any(process.exitcode for process in processes):
        reports = "; ".join(path.read_text() for path in sorted(folder.glob("failure_*")))
        raise UserError("a rank does not train", reports or str(folder), "See there.")
    write_ranks(folder, RANKS)


def record_reference(recipe: Recipe, folder: Path) -> None:
    """Train the port as it is, and leave in `folder` its recording, its noise floor and its recording in float64."""
    subject, overrides = trainer_under_test(), overrides_of(recipe, folder, folder / "kept")
    if recipe in ("resumed", "started"):
        keeps = {
            "explicit_log_dir": folder,
            "create_tensorboard_logger": "false",
            "checkpoint_callback_params": EACH_STEP,
        }
        run(
            subject, [*EARLIER, f"output_dir={folder / 'earlier'}", *(f"exp_manager.{k}={v}" for k, v in keeps.items())]
        )
    if recipe == "ranks":
        return record_ranks(subject, folder / REFERENCE, overrides)
    evidence = folder / files.FOLDER
    reference = _recorded(subject, folder / REFERENCE, *overrides, f"noise_floor={REPEATS}")
    for step in reference.steps:
        name = Path(step_folder(step)) / files.NOISE_FLOOR
        floor = read_evidence(reference.path / name, NoiseFloor)
        bound = floor.model_copy(update={"reference": seal_of(reference.index)})
        write_evidence(evidence / files.FLOOR / name, bound)
    if (measured := reference.path / files.VALIDATION_FLOOR).is_file():
        seal = {"reference": seal_of(reference.index)}
        found = read_evidence(measured, files.ValidationFloor).model_copy(update=seal)
        write_evidence(evidence / files.FLOOR / files.VALIDATION_FLOOR, found)
    _recorded(subject, evidence / files.FLOAT64 / REFERENCE, *overrides, FLOAT64)


def try_ranks(case: Case, size: float | None, references: Path, folder: Path) -> OverRanks:
    """As `try_case`, in several processes and without evidence.

    Raises:
        UserError: it cannot be planted, or does not train.
    """
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [*RECIPES["ranks"], *case.settings]
    record_ranks(trainer_under_test(), folder / CANDIDATE, overrides, case.edits_at(size))
    compared = []
    for rank in range(RANKS):
        places = references / "ranks" / REFERENCE / rank_folder(rank), folder / CANDIDATE / rank_folder(rank)
        reference, candidate = (open_recording(place, verify=False) for place in places)
        compared.append(compare_recordings(reference, candidate))
    return compare_over_ranks(compared)


def try_case(case: Case, size: float | None, references: Path, folder: Path) -> Comparison:
    """Compare the port with the case planted in this process with the port as it is, with all evidence.

    Args:
        references: a folder of `record_reference` for each recipe.
        folder: for what is recorded here; removed in the end.

    Raises:
        UserError: it cannot be planted, or does not train.
    """
    subject, prepared = trainer_under_test(), references / case.recipe
    overrides = overrides_of(case.recipe, prepared, folder / "kept")
    reference, evidence = _opened(prepared / REFERENCE), folder / files.FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    (evidence / files.FLOAT64).mkdir(parents=True)
    for name in (files.FLOOR, f"{files.FLOAT64}/{REFERENCE}"):
        (evidence / name).symlink_to((prepared / files.FOLDER / name).absolute())
    plant(case.edits_at(size))
    candidate = _recorded(subject, folder / CANDIDATE, *overrides, *case.settings)
    for side, recording in ((REFERENCE, reference), (CANDIDATE, candidate)):
        if candidate.learning_rates() and reference.learning_rates():
            rates = bind_rates(recording, side, reference, candidate)
            write_evidence(evidence / files.SCHEDULE / f"{side}.json", rates)
        if "operators=true" in overrides:
            write_evidence(evidence / files.OPERATORS / f"{side}.json", bind(recording, side, reference, candidate))
    # Where settings differ, or every recorded tensor has the same bits, nothing else can change the verdict.
    if not case.settings and candidate.index.tensors != reference.index.tensors:
        _gather(subject, reference, candidate, evidence, [*overrides, FLOAT64, "operators=false"])
    found = open_evidence(evidence, reference, candidate)
    if found.float64:
        found.float64 = _opened(found.float64[0].path), _opened(found.float64[1].path)
    return compare_recordings(reference, candidate, explainers=[explain_nest], evidence=found)


def _gather(
    subject: Subject, reference: Recording, candidate: Recording, evidence: Path, in_float64: list[str]
) -> None:
    """The replay, and both again in float64."""
    write_evidence(evidence / files.REPLAY, replay_recording(subject, reference, candidate))
    folder = evidence / files.FLOAT64
    double, twin = _opened(folder / REFERENCE), _recorded(subject, folder / CANDIDATE, *in_float64)
    write_evidence(folder / files.REPLAY, replay_recording(subject, double, twin, double=True))


def outcome_of(case: Case, size: float | None, key: str, references: Path, folder: Path) -> Outcome:
    """Try a case; what goes wrong is its outcome."""
    started = time.process_time()
    given: dict[str, Any] = {"key": key, "name": case.name, "size": case.size if size is None else size}
    try:
        if case.recipe == "ranks":
            over = try_ranks(case, size, references, folder)
            comparisons, verdict, code = over.ranks, over.verdict, over.exit_code
        else:
            comparisons = [try_case(case, size, references, folder)]
            verdict, code = comparisons[0].verdict, comparisons[0].exit_code
    except Exception as error:  # noqa: BLE001  whatever an edited trainer may raise
        return Outcome(**given, error=f"{type(error).__name__}: {error}"[:500])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    born = [
        Place(phase=one.phase, module=one.module, size=one.size, in_float64=one.in_float64, floors=one.floors)
        for comparison in comparisons
        for one in comparison.proof.born
    ]
    if comparisons[0].contract_differs:
        settings = [one.address.slot for one in comparisons[0].rung("contract").findings]
        born = [Place(phase="another experiment", module=setting) for setting in settings]
    return Outcome(
        **given,
        verdict=verdict.value,
        exit_code=code,
        born=tuple({(one.phase, one.module): one for one in reversed(born)}.values())[::-1],
        kinds=tuple(dict.fromkeys(likely.kind.value for each in comparisons for likely in each.kinds)),
        lacking=tuple(note.kind for each in comparisons for note in each.proof.lacking),
        seconds=round(time.process_time() - started, 2),
    )
