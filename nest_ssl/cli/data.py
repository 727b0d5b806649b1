"""Write the practice corpus or mend it, in each kind that trainers read; write a manifest again as another kind."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT, WORK
from nest_ssl.practice.corpus import read_checksums, write_corpus, wrong_files

KINDS = ("plain", "tarred", "shar", "buckets", "mux", "concat")  # the files of conf/kind
BUCKET_SECONDS = 3.5  # shorter utterances of the practice corpus make the first bucket
SHARDS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl data [--out FOLDER] [--kind KIND]`, `nest-ssl data convert|inspect MANIFEST ...`; the exit code.

    Raises:
        UserError: the folder cannot be written, or this machine makes other bytes than the committed checksums; a
            manifest that cannot be converted.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    verbs = {"convert": convert, "inspect": inspect}
    if given and given[0] in verbs:
        return verbs[given[0]](given[1:])
    description = "Write the practice corpus (12 utterances, 4 noises, 3 manifests): the same bytes on every machine."
    epilog = (
        "Does nothing where every file is there and right; writes again what is missing or damaged. "
        "Other verbs: nest-ssl data convert MANIFEST --to tarred --out FOLDER; nest-ssl data inspect MANIFEST."
    )
    parser = Parser(description=description, epilog=epilog)
    parser.add_argument("--out", type=Path, default=WORK / "data" / "dummy_ssl", help="default: data/dummy_ssl")
    parser.add_argument("--kind", choices=KINDS, default="plain", help="of training data (default plain)")
    arguments = parser.parse_args(given)
    out, checksums = arguments.out, read_checksums(ROOT / "data" / "dummy_ssl.sha256")
    written = write_corpus(out, checksums)
    if written:
        print(f"data: wrote {len(written)} of {len(checksums)} files to {out}; every SHA-256 is the committed one")
    else:
        print(f"data: all {len(checksums)} files are in {out} and right; nothing to do")
    for kind in ("tarred", "shar") if arguments.kind == "mux" else (arguments.kind,):
        if kind not in ("plain", "concat"):
            write_kind(kind, out)
    return 0


def convert(argv: Sequence[str]) -> int:
    """`nest-ssl data convert MANIFEST --to tarred|shar --out FOLDER [--shards N]`; prints the keys that read it."""
    import yaml

    from nest_ssl.data.manifest import read_speech
    from nest_ssl.data.sources import making

    description = "Write the utterances of a manifest again as tar files, or as Lhotse's shar."
    parser = Parser(prog="nest-ssl data convert", description=description)
    parser.add_argument("manifest", help="one JSON object a line, as NeMo has it")
    parser.add_argument("--to", choices=making.KINDS, required=True, help="tarred: audio as it is; shar: 16-bit WAV")
    parser.add_argument("--out", type=Path, required=True, help="a folder, which appears when all is written")
    parser.add_argument("--shards", type=int, default=SHARDS, help=f"tar files to share it out over (default {SHARDS})")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")
    given = parser.parse_args(argv)
    manifest = read_speech(given.manifest)
    keys = making.convert(manifest, given.to, given.out, given.shards, given.overwrite)
    print(f"data: wrote {len(manifest.lines)} utterances to {given.out}; a data section that reads them:")
    print(yaml.safe_dump(keys, sort_keys=False).rstrip())
    return 0


def inspect(argv: Sequence[str]) -> int:
    """`nest-ssl data inspect MANIFEST ...`; 0 if all of it can be used, else 1."""
    from nest_ssl.config.data import Dataset
    from nest_ssl.config.section import read
    from nest_ssl.data import inspection

    description = "Hours, lengths, duplicates, unreadable files, and the batches that a manifest gives."
    parser = Parser(prog="nest-ssl data inspect", description=description)
    parser.add_argument("manifest", nargs="+", help="one JSON object a line, as NeMo has it")
    parser.add_argument("--batch-size", type=int, default=8, help="utterances in a batch (default 8)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share them (default 1)")
    parser.add_argument("--min-duration", type=float, help="seconds; shorter utterances are left out")
    parser.add_argument("--max-duration", type=float, help="seconds; longer utterances are left out")
    parser.add_argument(
        "--shuffle", action="store_true", help="batches of a shuffled epoch, not in the manifest's order"
    )
    parser.add_argument("--seed", type=int, default=42, help="of that order (default 42)")
    parser.add_argument("--drop-last", action="store_true", help="without an incomplete last batch")
    parser.add_argument("--show", type=int, default=5, help="duplicates and unreadable files to name (default 5)")
    parser.add_argument("--sample", type=int, help="of more files than so many, read every n-th header (default: all)")
    given = parser.parse_args(argv)
    if given.ranks < 1:
        raise UserError("no number of processes", f"--ranks {given.ranks}", "Give 1 or more.")
    if given.show < 0:
        raise UserError("no number of files", f"--show {given.show}", "Give 0 or more.")
    names = ("batch_size", "shuffle", "drop_last", "min_duration", "max_duration")
    section = {"manifest_filepath": given.manifest} | {name: getattr(given, name) for name in names}
    if given.sample is not None and given.sample < 1:
        raise UserError("no number of files", f"--sample {given.sample}", "Give 1 or more.")
    found = inspection.inspect(read(Dataset, section), given.ranks, given.seed, given.show, given.sample)
    print(*inspection.lines(found, given.show), sep="\n")
    return 1 if found.unreadable[0] else 0


def write_kind(kind: str, plain: Path) -> None:
    """The practice corpus at `plain` as `kind` in a folder beside it, unless it is there and right.

    Raises:
        UserError: this machine makes other bytes than the committed checksums.
    """
    folder = plain.with_name(f"{plain.name}_{kind}")
    given = read_checksums(ROOT / "data" / "dummy_ssl_kinds.sha256")
    checksums = {name.removeprefix(f"{kind}/"): digest for name, digest in given.items() if name.startswith(f"{kind}/")}
    if not wrong_files(folder, checksums):
        print(f"data: all {len(checksums)} files are in {folder} and right; nothing to do")
        return
    from dataclasses import replace

    from nest_ssl.data.manifest import read_speech
    from nest_ssl.data.sources import making

    manifest = read_speech(str(plain / "train_manifest.json"))
    if kind == "buckets":
        shutil.rmtree(folder, ignore_errors=True)
        for number in (1, 2):
            lines = [line for line in manifest.lines if ((line.duration or 0) < BUCKET_SECONDS) == (number == 1)]
            making.convert(replace(manifest, lines=lines), "tarred", folder / f"bucket{number}", SHARDS)
    else:
        making.convert(manifest, kind, folder, SHARDS, overwrite=True)
    if wrong := wrong_files(folder, checksums):
        what = "the generated corpus has other bytes than the committed checksums"
        fix = "Restore the repository's files; or another version of lhotse or libsndfile writes other bytes."
        raise UserError(what, str(folder / wrong[0]), fix)
    print(f"data: wrote {len(checksums)} files to {folder}; every SHA-256 is the committed one")
