"""What goes into a bundle, and the checks that its parts are of one comparison.

statement.dsse.json          what is claimed, over the hashes of all that follows
report/                      report.json, report.md, and what else was written beside them
reference/, candidate/       recording.json, config.yaml, model_structure.pkl; with --tensors the whole recording
evidence/                    what was measured about the pair; with --tensors its float64 recordings too
asked/                       the user's lists: declared.yaml, names.yaml, known.yaml
locks/                       the hash-pinned environments
detection.json               what this comparer was measured to catch
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.files import is_regular, sha256_of
from nest_ssl.bundle import statement
from nest_ssl.bundle.archive import write_archive
from nest_ssl.bundle.statement import Claim, SideClaim
from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.recording import evidence, layout
from nest_ssl.recording.evidence import seal_of
from nest_ssl.report.detection import MEASURED, PACKAGE
from nest_ssl.report.render.json import as_tree, strict
from nest_ssl.report.write import DIGEST, JSON, MARKDOWN, PICTURES
from nest_ssl.run.compared import Asked, compare_as_asked

SIDES = ("reference", "candidate")
LISTS = ("declared", "names", "known")  # files of the user that decide with
ROOMS = ("base", "recording", "compare", "report", "run/nest_report.py")  # whose sources decide what a report says
LOCKS = PACKAGE.parent / "docker" / "locks"
WITHOUT_TENSORS = (layout.INDEX, layout.CONFIG, layout.STRUCTURE)
AGAIN = "Write the report of these recordings again (nest-ssl compare)."


def write_bundle(
    target: Path, reference: Path, candidate: Path, report: Path, asked: Asked, tensors: bool, key: Path | None
) -> Claim:
    """Compare again, check that `report` is of this comparison, and write all of it into one file.

    Raises:
        UserError: a part is missing or damaged, or the parts are not of one comparison.
    """
    if reference.resolve() == candidate.resolve():
        raise UserError("both sides are one folder", str(reference), "A recording compared with itself proves nothing.")
    comparison = compare_as_asked(reference, candidate, asked)
    check_report(report, comparison)
    files: dict[str, Path | bytes] = dict(sorted(_files(comparison, report, asked, tensors)))
    digests = {name: digest_of(content) for name, content in files.items()}
    claim = Claim(
        verdict=comparison.verdict.value,
        exit_code=comparison.exit_code,
        reference=claim_of(comparison.reference),
        candidate=claim_of(comparison.candidate),
        tensors=tensors,
        comparer=comparer(),
        atol=asked.atol,
        rtol=asked.rtol,
        steps=None if asked.steps is None else list(asked.steps),
    )
    write_archive(target, {statement.NAME: statement.seal(claim, digests, key), **files})
    return claim


def check_report(report: Path, comparison: Comparison) -> None:
    """Refuse a report that is not what the comparison gives.

    Raises:
        UserError: what is another, and where.
    """
    written = read_report(report)
    other = first_unlike(written, as_json(comparison))
    if other:
        raise UserError("the report is not of these recordings and options", f"{report / JSON}: {other}", AGAIN)


def read_report(folder: Path) -> dict[str, Any]:
    """`report.json`, beside the `report.md` that names it.

    Raises:
        UserError: one is missing or damaged, or they are of two comparisons.
    """
    for name in (JSON, MARKDOWN):
        if not is_regular(folder / name):
            raise UserError("no report", str(folder / name), AGAIN)
    try:
        data, words = (folder / JSON).read_bytes(), (folder / MARKDOWN).read_text("utf-8")
        tree = json.loads(data)
    except OSError as error:
        raise from_os_error(error, str(folder)) from error
    except (ValueError, RecursionError) as error:
        raise UserError("a damaged report", str(folder), AGAIN) from error
    digest = hashlib.sha256(data).hexdigest()[:DIGEST]
    if not isinstance(tree, dict) or f"begins with {digest}." not in words:
        raise UserError("report.md is of another comparison than report.json", str(folder), AGAIN)
    return tree


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as `report.json` has it when it is read."""
    tree: dict[str, Any] = json.loads(json.dumps(strict(as_tree(comparison))))
    return tree


def first_unlike(written: Any, found: Any, path: str = "") -> str:
    """The first place where two trees of JSON differ; empty where they are the same. Where they lay does not count."""
    if isinstance(written, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*written, *found]):
            if path in SIDES and key == "path":
                continue
            place = f"{path}.{key}" if path else key
            if key not in written or key not in found:
                return f"{place} is on one side only"
            if unlike := first_unlike(written[key], found[key], place):
                return unlike
        return ""
    if isinstance(written, list) and isinstance(found, list):
        if len(written) != len(found):
            return f"{path} has {len(written):,} entries, not {len(found):,}"
        pairs = enumerate(zip(written, found, strict=True))
        return next((unlike for i, two in pairs if (unlike := first_unlike(*two, f"{path}.{i}"))), "")
    return "" if written == found and type(written) is type(found) else f"{path} is {written!r}, not {found!r}"[:300]


def claim_of(side: Side) -> SideClaim:
    index = side.index
    image = (index.container or {}).get("image")
    named = image.get("digest") if isinstance(image, dict) else image
    return SideClaim(
        label=side.label,
        seal=seal_of(index),
        created=index.created,
        commit=index.git.commit,
        image=None if named is None else str(named),
    )


def comparer(package: Path = PACKAGE) -> str:
    """SHA-256 over the sources that decide what a report says."""
    digest = hashlib.sha256()
    for room in ROOMS:
        found = [package / room] if room.endswith(".py") else (package / room).rglob("*")
        for path in sorted(path for path in found if path.suffix in (".py", ".yaml")):
            digest.update(f"{path.relative_to(package).as_posix()}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


def digest_of(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)


def _files(comparison: Comparison, report: Path, asked: Asked, tensors: bool) -> Iterator[tuple[str, Path]]:
    """Every file by its name in the bundle."""
    for path in report.iterdir():
        if path.is_file() and path.name.startswith("report."):
            yield f"report/{path.name}", path
    for path in sorted((report / PICTURES).glob("*.svg")):
        yield f"report/{PICTURES}/{path.name}", path
    reference, candidate = comparison.reference, comparison.candidate
    for role, side in zip(SIDES, (reference, candidate), strict=True):
        names = [layout.INDEX, *side.index.files] if tensors else list(WITHOUT_TENSORS)
        yield from ((f"{role}/{name}", Path(side.path) / name) for name in names)
    for name in LISTS:
        if (path := getattr(asked, name)) is not None:
            yield f"asked/{name}.yaml", path
    folder = asked.evidence or Path(reference.path).resolve().parent / evidence.FOLDER
    yield from _evidence(folder, [Path(reference.path).name, Path(candidate.path).name], tensors)
    if LOCKS.is_dir():
        yield from ((f"locks/{path.name}", path) for path in LOCKS.iterdir() if path.suffix in (".lock", ""))
    if MEASURED.is_file():
        yield MEASURED.name, MEASURED


def _evidence(folder: Path, own: list[str], tensors: bool) -> Iterator[tuple[str, Path]]:
    """Measurements; the float64 recordings under the names that the sides have in a bundle."""
    names = dict(zip(own, SIDES, strict=False))
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        place = path.relative_to(folder).parts
        in_recording = len(place) > 2 and place[0] == evidence.FLOAT64 and place[1] in names
        if path.is_file() and path.suffix != ".log" and (tensors if in_recording else path.suffix == ".json"):
            parts = (place[0], names[place[1]], *place[2:]) if in_recording else place
            yield "/".join((evidence.FOLDER, *parts)), path
