"""`nest-ssl bundle` and `nest-ssl verify`: what is shown again, what is a claim; and every forgery we could think of.

Each test plants one fault in a bundle that is otherwise whole, as a forger would: with every hash fixed up.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nest_ssl.base.errors import UserError
from nest_ssl.bundle import statement
from nest_ssl.bundle.archive import write_archive
from nest_ssl.bundle.statement import Claim
from nest_ssl.bundle.verify import Verified, verify_bundle
from nest_ssl.cli.bundle import main as bundle
from nest_ssl.cli.compare import main as compare
from nest_ssl.cli.verify import main as verify
from nest_ssl.recording import layout
from nest_ssl.recording.index import sealed
from tests.compare.builder import CONFIG, Plan, edit_tensors, record

Files = dict[str, bytes]
OWN_CONFIG = {**CONFIG, "output_dir": "outputs/nest"}


class Pair:
    """Two recordings with the same bits, their report, and bundles of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference = record(folder / "nemo", Plan(steps=(0,)))
        self.candidate = record(folder / "nest", Plan(name="port", version="0.1.0", steps=(0,), config=OWN_CONFIG))
        self.compared()
        self.whole, self.light = self.bundled("whole.tar", "--tensors"), self.bundled("light.tar")

    @property
    def sides(self) -> list[str]:
        return ["--reference", str(self.reference), "--candidate", str(self.candidate)]

    def compared(self) -> None:
        assert compare([*self.sides, "--out", str(self.folder / "report")]) == 0

    def bundled(self, name: str, *options: str) -> Path:
        target = self.folder / name
        assert bundle([str(target), *self.sides, "--report", str(self.folder / "report"), *options]) == 0
        return target


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private and public keys of the maker and of somebody else."""
    folder, found = tmp_path_factory.mktemp("keys"), {}
    pem, raw = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for name in ("maker", "other"):
        private = Ed25519PrivateKey.generate()
        plain = serialization.NoEncryption()
        texts = {
            name: private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
            f"{name}.pub": private.public_key().public_bytes(pem, raw),
        }
        for file, text in texts.items():
            found[file] = folder / f"{file}.pem"
            found[file].write_bytes(text)
    return found


def contents(path: Path) -> Files:
    with tarfile.open(path, "r:") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: stream.read() for name, stream in files.items() if stream is not None}


def forged(source: Path, target: Path, edit: Callable[[Files], None], key: Path | None = None, **claim: Any) -> Path:
    """A bundle with edited files, under a statement whose hashes are right again."""
    files = contents(source)
    payload = json.loads(base64.b64decode(json.loads(files.pop(statement.NAME))["payload"]))
    edit(files)
    said = Claim.model_validate({**payload["predicate"], **claim})
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_archive(target, {statement.NAME: statement.seal(said, digests, key), **files})
    return target


def edit_report(files: Files, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change `report.json`, and the digest of it that `report.md` names."""
    old = files["report/report.json"]
    tree = json.loads(old)
    edit(tree)
    new = (json.dumps(tree, indent=1) + "\n").encode()
    before, after = (hashlib.sha256(text).hexdigest()[:16].encode() for text in (old, new))
    files["report/report.json"] = new
    files["report/report.md"] = files["report/report.md"].replace(before, after)


def edit_index(files: Files, side: str, edit: Callable[[dict[str, Any]], None]) -> str:
    """Change an index and its seal; returns the new seal."""
    index = json.loads(files[f"{side}/{layout.INDEX}"])
    edit(index)
    index = sealed(index)
    files[f"{side}/{layout.INDEX}"] = json.dumps(index).encode()
    return str(index["sha256"])


def lines(found: Verified) -> tuple[str, str]:
    return "\n".join(found.shown), "\n".join(found.claimed)


# --- a whole bundle ---------------------------------------------------------------------------------------------------


def test_with_tensors_everything_is_shown_again(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(pair.whole)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("identical: port-ssl 0.1.0 against NeMo 3.0.0\nshown again here:\n")
    shown, claimed = said.split("only claimed:")
    assert "comparison: run again on" in shown and "every word of report.md came out the same" in shown
    assert "pictures and pages came out the same" in shown and "report.html" not in claimed
    assert "not signed, so anybody may have" in claimed and "only training again shows that" in claimed
    assert str(pair.folder) not in said.replace(str(pair.whole), "")


def test_without_tensors_the_verdict_is_a_claim(pair: Pair) -> None:
    shown, claimed = lines(verify_bundle(pair.light))
    assert "digests: of 81 weights, gradients and losses that both indexes list, 81 are the same" in shown
    assert "the verdict (identical), its counts, sizes and words" in claimed and "comparison" not in shown
    assert pair.light.stat().st_size < pair.whole.stat().st_size
    assert not [name for name in contents(pair.light) if name.endswith(".pt")]


def test_the_same_inputs_give_the_same_bytes(pair: Pair, keys: dict[str, Path]) -> None:
    assert pair.bundled("again.tar").read_bytes() == pair.light.read_bytes()
    one, two = (pair.bundled(name, "--sign", str(keys["maker"])) for name in ("one.tar", "two.tar"))
    assert one.read_bytes() == two.read_bytes() != pair.light.read_bytes()


def test_it_is_a_tar_and_an_in_toto_statement_for_anybodys_tools(pair: Pair) -> None:
    files = contents(pair.light)
    envelope = json.loads(files.pop(statement.NAME))
    assert envelope["payloadType"] == "application/vnd.in-toto+json" and envelope["signatures"] == []
    said = json.loads(base64.b64decode(envelope["payload"]))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    wanted = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    assert {subject["name"]: subject["digest"] for subject in said["subject"]} == wanted
    assert {"report/report.json", "reference/recording.json", "locks/nest-cpu.lock"} <= files.keys()


def test_another_machine_where_sizes_end_in_other_digits(pair: Pair, tmp_path: Path) -> None:
    """Not refused: verdict, places and counts are the same; the rest is said to be claimed."""
    made = forged(pair.whole, tmp_path / "f.tar", lambda files: edit_report(files, lambda t: t.update(origin="x")))
    shown, claimed = lines(verify_bundle(made))
    assert "with the same verdict, first difference and counts" in shown
    assert "every other number of report.json: here origin is 'x', not ''" in claimed


# --- parts that do not belong together, when bundling -----------------------------------------------------------------


def test_a_report_of_other_recordings_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = record(tmp_path / "nest", Plan(name="port", version="0.1.0", steps=(0,), config=OWN_CONFIG))
    parts = ["--reference", str(pair.reference), "--candidate", str(other), "--report", str(pair.folder / "report")]
    with pytest.raises(UserError, match=r"not of these recordings and options: .*report\.json: candidate\.recording"):
        bundle([str(tmp_path / "b.tar"), *parts])
    with pytest.raises(UserError, match=r"report\.json: tolerance"):
        bundle([str(tmp_path / "b.tar"), *pair.sides, "--report", str(pair.folder / "report"), "--atol", "1"])
    assert not (tmp_path / "b.tar").exists()


def test_halves_of_two_reports_are_refused(pair: Pair, tmp_path: Path) -> None:
    report = Path(shutil.copytree(pair.folder / "report", tmp_path / "report"))
    (report / "report.md").write_text((report / "report.md").read_text().replace("begins with ", "begins with 0"))
    with pytest.raises(UserError, match=r"report\.md is of another comparison"):
        bundle([str(tmp_path / "b.tar"), *pair.sides, "--report", str(report)])
    (report / "report.md").unlink()
    with pytest.raises(UserError, match=r"no report: .*report\.md"):
        bundle([str(tmp_path / "b.tar"), *pair.sides, "--report", str(report)])


def test_a_recording_against_itself_is_refused(pair: Pair, tmp_path: Path) -> None:
    same = ["--reference", str(pair.reference), "--candidate", str(pair.reference)]
    with pytest.raises(UserError, match="both sides are one folder"):
        bundle([str(tmp_path / "b.tar"), *same, "--report", str(pair.folder / "report")])


# --- forgeries --------------------------------------------------------------------------------------------------------


def test_candidate_files_copied_from_the_reference(pair: Pair, tmp_path: Path) -> None:
    """As they are: noticed. With settings and structure of its own and hashes fixed up: beyond what can be noticed."""
    copied = Path(shutil.copytree(pair.reference, tmp_path / "nest"))
    index = json.loads((copied / layout.INDEX).read_text())
    index |= {"trainer": {**index["trainer"], "name": "port"}, "created": "2026-01-01T00:00:00+00:00"}
    (copied / layout.INDEX).write_text(json.dumps(sealed(index)))
    sides = ["--reference", str(pair.reference), "--candidate", str(copied)]
    assert compare([*sides, "--out", str(tmp_path / "report")]) == 0
    made = tmp_path / "copied.tar"
    assert bundle([str(made), *sides, "--report", str(tmp_path / "report"), "--tensors"]) == 0
    with pytest.raises(UserError, match="the candidate is a copy of the reference"):
        verify_bundle(made)

    config = (pair.candidate / layout.CONFIG).read_bytes()
    (copied / layout.CONFIG).write_bytes(config)
    index["files"][layout.CONFIG] = {"bytes": len(config), "sha256": hashlib.sha256(config).hexdigest()}
    (copied / layout.INDEX).write_text(json.dumps(sealed(index)))
    assert compare([*sides, "--out", str(tmp_path / "report")]) == 0
    assert bundle([str(made), *sides, "--report", str(tmp_path / "report"), "--tensors"]) == 0
    _, claimed = lines(verify_bundle(made))
    assert "tensors copied from the other side look like its own" in claimed


@pytest.mark.parametrize("kind", ["light", "whole"])
def test_an_index_edited_with_hashes_fixed_up(pair: Pair, tmp_path: Path, kind: str) -> None:
    seal = ""

    def edit(files: Files) -> None:
        nonlocal seal
        seal = edit_index(files, "candidate", lambda index: index.update(seed=7))

    source = getattr(pair, kind)
    with pytest.raises(UserError, match=r"the report is of another recording: .*candidate\.recording\.seed"):
        verify_bundle(forged(source, tmp_path / "f.tar", edit))

    def edit_both(files: Files) -> None:
        edit(files)
        new = {"seed": 7, "sha256": seal}
        edit_report(files, lambda tree: tree["candidate"]["recording"].update(new))

    with pytest.raises(UserError, match="the statement is of another recording: .*: candidate"):
        verify_bundle(forged(source, tmp_path / "f.tar", edit_both))
    claim = json.loads(base64.b64decode(json.loads(contents(source)[statement.NAME])["payload"]))["predicate"]
    side = {**claim["candidate"], "seal": seal}
    made = forged(source, tmp_path / "f.tar", edit_both, candidate=side)
    if kind == "light":  # all fixed up, and no tensor to compare: plainly a claim
        assert "the verdict (identical)" in lines(verify_bundle(made))[1]
        return
    with pytest.raises(UserError, match="the report is not what its recordings give: .*verdict"):
        verify_bundle(made)


def test_a_digest_edited_in_an_index_contradicts_the_verdict(pair: Pair, tmp_path: Path) -> None:
    seal = ""

    def edit(files: Files) -> None:
        nonlocal seal

        def other(index: dict[str, Any]) -> None:
            index["tensors"]["step_0/loss.pt"]["loss"]["digest"] = "0" * 64

        seal = edit_index(files, "candidate", other)
        edit_report(files, lambda tree: tree["candidate"]["recording"].update(sha256=seal))

    forged(pair.light, tmp_path / "f.tar", edit)
    claim = json.loads(base64.b64decode(json.loads(contents(pair.light)[statement.NAME])["payload"]))["predicate"]
    made = forged(pair.light, tmp_path / "f.tar", edit, candidate={**claim["candidate"], "seal": seal})
    with pytest.raises(UserError, match=r"the verdict is identical, and the digests are not: .*loss\.pt: loss"):
        verify_bundle(made)


def test_a_report_exchanged(pair: Pair, tmp_path: Path) -> None:
    """Of the same two recordings, after one was edited: identical is claimed, and it is not."""
    other = Path(shutil.copytree(pair.candidate, tmp_path / "nest"))
    edit_tensors(other, "step_0/loss.pt", lambda loss: loss["loss"].add_(1))
    sides = ["--reference", str(pair.reference), "--candidate", str(other)]
    assert compare([*sides, "--out", str(tmp_path / "report")]) == 1
    made = tmp_path / "diverged.tar"
    assert bundle([str(made), *sides, "--report", str(tmp_path / "report"), "--tensors"]) == 0
    assert verify_bundle(made).claim.exit_code == 1
    good = {name: text for name, text in contents(pair.whole).items() if name.startswith("report/")}
    with pytest.raises(UserError, match="the report is of another recording"):
        verify_bundle(forged(made, tmp_path / "f.tar", lambda files: files.update(good)))

    def whitewash(tree: dict[str, Any]) -> None:
        tree |= {"verdict": "identical", "exit_code": 0, "first_difference": None}

    edited = {"verdict": "identical", "exit_code": 0}
    with pytest.raises(UserError, match="another verdict than the statement"):
        verify_bundle(forged(made, tmp_path / "f.tar", lambda files: edit_report(files, whitewash)))
    with pytest.raises(UserError, match="identical, and the digests are not"):
        verify_bundle(forged(made, tmp_path / "f.tar", lambda files: edit_report(files, whitewash), **edited))
    edited["verdict"] = "equivalent"  # which digests cannot contradict

    def soften(tree: dict[str, Any]) -> None:
        tree |= {**edited, "first_difference": None}

    with pytest.raises(UserError, match="not what its recordings give: .*verdict is 'equivalent', not 'diverged'"):
        verify_bundle(forged(made, tmp_path / "f.tar", lambda files: edit_report(files, soften), **edited))


def test_a_page_that_was_edited_is_a_claim(pair: Pair, tmp_path: Path) -> None:
    """Its bytes may differ honestly, on another processor; it is never among what was shown."""

    def repaint(files: Files) -> None:
        files["report/report.html"] = files["report/report.html"].replace(b"identical", b"diverged!")

    shown, claimed = lines(verify_bundle(forged(pair.whole, tmp_path / "painted.tar", repaint)))
    assert "report/report.html: not made again here, or otherwise" in claimed
    whole = next(line for line in lines(verify_bundle(pair.whole))[0].splitlines() if line.startswith("pictures"))
    assert whole not in shown


def test_words_edited_alone(pair: Pair, tmp_path: Path) -> None:
    def edit(files: Files) -> None:
        files["report/report.md"] = files["report/report.md"].replace(b"seed 42", b"seed 43")

    with pytest.raises(UserError, match=r"the words of the report .*report\.md"):
        verify_bundle(forged(pair.whole, tmp_path / "f.tar", edit))
    _, claimed = lines(verify_bundle(forged(pair.whole, tmp_path / "f.tar", edit, comparer="0" * 64)))
    assert "another version of nest-ssl wrote them" in claimed


def test_tensors_exchanged(pair: Pair, tmp_path: Path) -> None:
    def edit(files: Files) -> None:
        files["candidate/step_0/loss.pt"] = files["candidate/step_0/batch.pt"]

    with pytest.raises(UserError, match=r"damaged recording: .*f\.tar: candidate/step_0/loss\.pt"):
        verify_bundle(forged(pair.whole, tmp_path / "f.tar", edit))


@pytest.mark.parametrize("name", ["candidate/config.yaml", "candidate/model_structure.pkl", "locks/nest-cpu.lock"])
def test_a_file_of_another_recording_or_lock(pair: Pair, tmp_path: Path, name: str) -> None:
    def edit(files: Files) -> None:
        files[name] += b"\n"

    with pytest.raises(UserError, match=f"f.tar: {name}"):
        verify_bundle(forged(pair.light, tmp_path / "f.tar", edit))


def test_a_file_changed_added_or_left_out_under_the_old_statement(pair: Pair, tmp_path: Path) -> None:
    for edit, says in (
        ({"report/report.md": b"x"}, "report/report.md is not the one"),
        ({"report/more": b"x"}, "report/more is not named"),
        ({"detection.json": None, "locks/nest-cpu.lock": None}, "is not in the bundle"),
    ):
        files = {name: content for name, content in {**contents(pair.light), **edit}.items() if content is not None}
        write_archive(tmp_path / "f.tar", files)
        with pytest.raises(UserError, match=f"the bundle was changed: .*{says}"):
            verify_bundle(tmp_path / "f.tar")


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_signature_is_of_the_key_that_was_given(pair: Pair, keys: dict[str, Path], tmp_path: Path) -> None:
    made = pair.bundled("signed.tar", "--sign", str(keys["maker"]))
    shown, claimed = lines(verify_bundle(made, keys["maker.pub"]))
    assert "signed with the key given" in shown and "signed" not in claimed
    assert "not checked; give that key with --key" in lines(verify_bundle(made))[1]
    with pytest.raises(UserError, match="signed with another key"):
        verify_bundle(made, keys["other.pub"])
    with pytest.raises(UserError, match="the bundle is not signed"):
        verify_bundle(pair.light, keys["maker.pub"])
    again = forged(made, tmp_path / "f.tar", lambda files: None, keys["other"])  # signed again, by somebody else
    with pytest.raises(UserError, match="signed with another key"):
        verify_bundle(again, keys["maker.pub"])

    def edit(files: Files) -> None:
        envelope = json.loads(files[statement.NAME])
        payload = base64.b64decode(envelope["payload"]).replace(b'"exit_code":0', b'"exit_code":2')
        envelope["payload"] = base64.b64encode(payload).decode()
        files[statement.NAME] = json.dumps(envelope).encode()

    files = contents(made)
    edit(files)
    write_archive(tmp_path / "g.tar", files)
    with pytest.raises(UserError, match="the signature is not of this statement"):
        verify_bundle(tmp_path / "g.tar", keys["maker.pub"])


def test_what_is_signed_is_dsses_pae() -> None:
    """The example of the protocol's own text."""
    assert statement._preimage(b"hello") == b"DSSEv1 28 application/vnd.in-toto+json 5 hello"


def test_keys_that_are_none(pair: Pair, keys: dict[str, Path], tmp_path: Path) -> None:
    for key, says in ((keys["maker.pub"], "not a private"), (tmp_path / "none", "no such file")):
        with pytest.raises(UserError, match=says):
            pair.bundled("x.tar", "--sign", str(key))
    with pytest.raises(UserError, match="not a public"):
        verify_bundle(pair.light, keys["maker"])
