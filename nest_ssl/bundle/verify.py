"""What a bundle shows on a machine that trusts nothing in it, and what remains a claim.

Whatever does not fit together is refused. Beyond what can be noticed: a candidate whose tensors were copied from the
reference into a recording with its own configuration, structure and hashes is, byte for byte, what an honest twin of
the reference would be. Only training again shows which it is; a signature says who answers for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import sha256_of
from nest_ssl.bundle import statement
from nest_ssl.bundle.archive import unpack
from nest_ssl.bundle.contents import LISTS, SIDES, as_json, comparer, first_unlike, read_report
from nest_ssl.bundle.statement import Claim
from nest_ssl.compare.comparison import Comparison
from nest_ssl.recording import evidence, layout
from nest_ssl.recording.evidence import seal_of
from nest_ssl.recording.index import Index
from nest_ssl.recording.reader import Recording, read_index
from nest_ssl.report.pictures import Pictures
from nest_ssl.report.pictures.draw import Drawing, drawings
from nest_ssl.report.render.html import render_html
from nest_ssl.report.render.json import LEFT_OUT, strict
from nest_ssl.report.write import DIGEST, JSON, MARKDOWN, PAGE, PICTURES, report_text
from nest_ssl.run.compared import Asked, open_as_asked

FIX = "Do not trust this bundle; get it again from whoever made it."
# Of a report, what every machine must find again; sizes of differences may end in other digits on another processor.
_COUNTS = ("name", "status", "compared", "differing", "missing_reference", "missing_candidate")
_PLACE = ("rung", "step", "rank", "module", "call", "tensor", "kind")
_CODES = {"identical": (0,), "equivalent": (0,), "diverged": (1,), "inconclusive": (2, 4)}


@dataclass(slots=True)
class Verified:
    """What was found: the claim, the sentences that were shown here, and those that only the bundle says.

    Args:
        drawn: files of the report that came out the same when they were made again.
    """

    claim: Claim
    shown: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)


def verify_bundle(bundle: Path, key: Path | None = None) -> Verified:
    """Unpack a bundle into a temporary folder and check it, without any network.

    Args:
        key: the public key that it must be signed with.

    Raises:
        UserError: it is no bundle, is damaged, or its parts do not belong together: what, and in which of its files.
    """
    with tempfile.TemporaryDirectory(prefix="nest-ssl-verify-") as name:
        folder = Path(name)
        try:
            return _verify(bundle, folder, key)
        except UserError as error:  # by the names in the bundle: the folder is gone when it is read
            where = error.where.replace(f"{folder}/", f"{bundle}: ").replace(str(folder), str(bundle))
            raise UserError(error.what, where, error.fix) from error


def _verify(bundle: Path, folder: Path, key: Path | None) -> Verified:
    digests = unpack(bundle, folder)
    signed = digests.pop(statement.NAME, None)
    if signed is None:
        raise UserError("a bundle without a statement", f"{bundle}: {statement.NAME}", FIX)
    said, payload, signature = statement.read_statement(folder / statement.NAME, f"{bundle}: {statement.NAME}")
    found = Verified(said.predicate)
    _check_files({one.name: one.digest["sha256"] for one in said.subject}, digests, bundle)
    found.shown.append(f"files: all {len(digests):,} have the SHA-256 that the statement names, and there is no other")
    if key is not None:
        keyid = statement.check_signature(payload, signature, key, str(bundle))
        found.shown.append(f"signature: the statement is signed with the key given ({keyid[:16]}...)")
    elif signature is not None:
        found.claimed.append(f"signature: with key {signature.keyid[:16]}..., not checked; give that key with --key")
    else:
        found.claimed.append("who made it: the statement is not signed, so anybody may have")
    tree = read_report(folder / "report")
    indexes = [read_index(folder / side) for side in SIDES]
    _check_sides(folder, tree, said.predicate, indexes)
    found.shown.append(
        "report and recordings: report.json is of these two indexes, and report.md names that report.json"
    )
    _check_verdict(tree, said.predicate, indexes, folder, found)
    _check_locks(folder, found)
    if said.predicate.tensors:
        _compare_again(folder, tree, said.predicate, found)
    else:
        found.claimed.append(
            f"the verdict ({said.predicate.verdict}), its counts, sizes and words, and the evidence: the tensors are "
            "not in the bundle; whoever made it can bundle again with --tensors"
        )
    _list_claims(folder, said.predicate, indexes, found)
    return found


def _check_files(subjects: Mapping[str, str], digests: Mapping[str, str], bundle: Path) -> None:
    for name in sorted(subjects.keys() | digests.keys()):
        if subjects.get(name) != digests.get(name):
            what = "is not the one that the statement names"
            what = "is not in the bundle" if name not in digests else what
            what = "is not named by the statement" if name not in subjects else what
            raise UserError("the bundle was changed", f"{bundle}: {name} {what}", FIX)


def _check_sides(folder: Path, tree: dict[str, Any], claim: Claim, indexes: list[Index]) -> None:
    """Statement, report and recordings name the same two."""
    for name, index, side in zip(SIDES, indexes, (claim.reference, claim.candidate), strict=True):
        recording, said = Recording(folder / name, index, verified=False), tree.get(name)
        for file in (layout.CONFIG, layout.STRUCTURE):
            if sha256_of(recording.listed(file)) != index.files[file].sha256:
                raise UserError("a file of another recording", str(folder / name / file), FIX)
        if not isinstance(said, dict):
            raise UserError("a damaged report", str(folder / "report" / JSON), FIX)
        config: Any = strict(recording.config)
        own = index.model_dump(mode="json", by_alias=True, exclude=LEFT_OUT)
        other = first_unlike(said.get("recording"), own, f"{name}.recording")
        other = other or first_unlike(said.get("config"), config, f"{name}.config")
        if other:
            raise UserError("the report is of another recording", f"{folder / 'report' / JSON}: {other}", FIX)
        claimed = (side.seal, side.created, side.commit, side.label)
        if claimed != (seal_of(index), index.created, index.git.commit, said.get("label")):
            raise UserError("the statement is of another recording", f"{folder / statement.NAME}: {name}", FIX)
    if {n: f.sha256 for n, f in indexes[0].files.items()} == {n: f.sha256 for n, f in indexes[1].files.items()}:
        raise UserError("the candidate is a copy of the reference", str(folder / SIDES[1] / layout.INDEX), FIX)


def _check_verdict(tree: dict[str, Any], claim: Claim, indexes: list[Index], folder: Path, found: Verified) -> None:
    """Statement, report and the digests in the indexes say the same."""
    said, where = (tree.get("verdict"), tree.get("exit_code")), str(folder / "report" / JSON)
    if said != (claim.verdict, claim.exit_code) or claim.exit_code not in _CODES.get(claim.verdict, ()):
        raise UserError("the report has another verdict than the statement", f"{where}: {said[0]!r}", FIX)
    compared, same, first = 0, 0, ""
    for file, tensors in _compared_files(tree, indexes):
        for place, entry in tensors.items():
            other = indexes[1].tensors[file].get(place)
            compared += other is not None
            same += other == entry
            first = first or (f"{file}: {place}" if other is not None and other != entry else "")
    if claim.verdict == "identical" and first and not (folder / "asked" / "names.yaml").exists():
        raise UserError("the verdict is identical, and the digests are not", f"{where}: {first}", FIX)
    found.shown.append(
        f"digests: of {compared:,} weights, gradients and losses that both indexes list, {same:,} are the same"
    )


def _compared_files(tree: dict[str, Any], indexes: list[Index]) -> list[tuple[str, Mapping[str, Any]]]:
    steps = [str(step) for step in tree.get("steps") or []]
    names = (layout.WEIGHTS, layout.GRADIENTS, layout.LOSS)
    wanted = {layout.INITIAL_WEIGHTS} if all(index.resumed_from is None for index in indexes) else set()
    reference, candidate = (index.tensors for index in indexes)
    for file in reference:
        *_, step, name = ("", "", *file.split("/"))
        if name in names and step.removeprefix("step_") in steps:
            wanted.add(file)
    return [(file, reference[file]) for file in sorted(wanted) if file in reference and file in candidate]


def _check_locks(folder: Path, found: Verified) -> None:
    sums = folder / "locks" / "SHA256SUMS"
    if not sums.is_file():
        return
    for line in sums.read_text("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        path = sums.parent / Path(name).name
        if not path.is_file() or sha256_of(path) != digest:
            raise UserError("a lock that is not the one listed", str(path), FIX)
    found.shown.append("locks: each is the one that SHA256SUMS lists")


def _compare_again(folder: Path, tree: dict[str, Any], claim: Claim, found: Verified) -> None:
    """Every hash and digest of both recordings, and the whole comparison once more."""
    declared, names, known = (_there(folder / "asked" / f"{name}.yaml") for name in LISTS)
    steps = None if claim.steps is None else tuple(claim.steps)
    asked = Asked(claim.atol, claim.rtol, steps, declared, names, known, _there(folder / evidence.FOLDER))
    comparison, pictures = open_as_asked(folder / SIDES[0], folder / SIDES[1], asked).compare_and_picture()
    for name, side in zip(SIDES, (comparison.reference, comparison.candidate), strict=True):
        side.path = str(tree[name].get("path"))  # where it lay, which the words mention
    again, where = as_json(comparison), str(folder / "report" / JSON)
    if unlike := first_unlike(core(tree), core(again)):
        raise UserError("the report is not what its recordings give", f"{where}: {unlike}", FIX)
    if any(note.kind == "same_recording" for note in comparison.notes):
        raise UserError("the candidate is a copy of the reference", str(folder / SIDES[1]), FIX)
    tensors = f"{comparison.facts.tensors:,} tensors"
    found.shown.append(f"comparison: run again on {tensors}, with the same verdict, first difference and counts")
    if unlike := first_unlike(tree, again):
        found.claimed.append(f"every other number of report.json: here {unlike}")
        return
    _check_words(folder, comparison, drawings(pictures), claim, found)
    _draw_again(folder / "report", comparison, pictures, found)


def _there(path: Path) -> Path | None:
    return path if path.exists() else None


def core(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a report's findings, what does not depend on the processor that compares."""
    first, rungs = tree.get("first_difference"), tree.get("rungs")
    return {
        "verdict": tree.get("verdict"),
        "exit_code": tree.get("exit_code"),
        "steps": tree.get("steps"),
        "first_difference": {key: first.get(key) for key in _PLACE} if isinstance(first, dict) else first,
        "rungs": [{key: rung.get(key) for key in _COUNTS} for rung in rungs] if isinstance(rungs, list) else rungs,
    }


def _check_words(folder: Path, comparison: Comparison, drawn: Sequence[Drawing], claim: Claim, found: Verified) -> None:
    """`report.md` said once more by the comparer that is installed here, with its links to pictures if it has any."""
    digest, written = sha256_of(folder / "report" / JSON)[:DIGEST], (folder / "report" / MARKDOWN).read_text("utf-8")
    if written in (report_text(comparison, digest, drawn), report_text(comparison, digest)):
        found.shown.append("report: every number of report.json and every word of report.md came out the same")
        return
    found.shown.append("report: every number of report.json came out the same")
    if claim.comparer == comparer():
        where = str(folder / "report" / MARKDOWN)
        raise UserError("the words of the report are not what its findings give", where, FIX)
    found.claimed.append("the words of report.md: another version of nest-ssl wrote them; read report.json")


def _draw_again(report: Path, comparison: Comparison, pictures: Pictures, found: Verified) -> None:
    """The pictures and the page once more; other bytes are no fault, for another processor rounds other digits."""
    made = {f"{PICTURES}/{drawing.name}.svg": drawing.svg(style=True).encode() for drawing in drawings(pictures)}
    made[PAGE] = render_html(comparison, pictures, sha256_of(report / JSON)[:DIGEST]).encode()
    there = {path.relative_to(report).as_posix() for path in (*report.glob(f"{PICTURES}/*"), *report.glob(PAGE))}
    found.drawn = {name for name in there if made.get(name) == (report / name).read_bytes()}
    if found.drawn:
        found.shown.append(f"pictures: {len(found.drawn)} of {len(there)} pictures and pages came out the same")


def _list_claims(folder: Path, claim: Claim, indexes: list[Index], found: Verified) -> None:
    for name, index, side in zip(SIDES, indexes, (claim.reference, claim.candidate), strict=True):
        commit = f"commit {side.commit[:7]}" if side.commit else "an unknown commit"
        image = f" in image {side.image}" if side.image else ""
        found.claimed.append(
            f"{name}: that {side.label} at {commit}{image} made it on {index.device.name or 'its device'}, "
            f"{side.created or 'at an unknown time'}; tensors copied from the other side look like its own: "
            "only training again shows that"
        )
    paths = (path for path in sorted((folder / "report").rglob("*")) if path.is_file())
    names = [path.relative_to(folder / "report").as_posix() for path in paths]
    further = [name for name in names if name not in (JSON, MARKDOWN, *found.drawn)]
    found.claimed += [f"report/{name}: not made again here, or otherwise" for name in further]
    if (folder / "detection.json").is_file():
        found.claimed.append("detection.json: measured where the bundle was made (nest-ssl selftest)")
