"""What a bundle claims: an in-toto Statement (v1) over the hashes of all its files, in a DSSE envelope.

Sources: github.com/in-toto/attestation (Statement v1), github.com/secure-systems-lab/dsse (protocol, JSON envelope).
The signature is optional: Ed25519 with the package `cryptography` (`pip install nest_ssl[sign]`). An envelope without
one is honest about it: anybody may have made the bundle.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import opened
from nest_ssl.recording.index import Sha256

NAME = "statement.dsse.json"
PAYLOAD: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"
STATEMENT: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE: Literal["urn:nest-ssl:comparison:1"] = "urn:nest-ssl:comparison:1"
MOST = 1 << 24  # bytes of a statement
FIX = "Get the bundle again from whoever made it."


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Signature(_Strict):
    keyid: str = Field(pattern="^[0-9a-f]{64}$")  # SHA-256 of the 32 bytes of the public key
    sig: str


class Envelope(_Strict):
    payload_type: Literal["application/vnd.in-toto+json"] = Field(PAYLOAD, alias="payloadType")
    payload: str
    signatures: list[Signature] = Field([], max_length=1)


class Subject(_Strict):
    name: str
    digest: dict[Literal["sha256"], Sha256]


class SideClaim(_Strict):
    """One recording: its seal (the checksum of its index), and what it says of its making."""

    label: str
    seal: Sha256
    created: str
    commit: str | None
    image: str | None


class Claim(_Strict):
    """The predicate.

    Args:
        tensors: whether the recordings are in the bundle whole.
        comparer: hash of the sources that made the report.
        atol, rtol, steps: what was asked for; the user's lists are files of the bundle.
    """

    verdict: str
    exit_code: int
    reference: SideClaim
    candidate: SideClaim
    tensors: bool
    comparer: Sha256
    atol: float | None
    rtol: float | None
    steps: list[int] | None


class Statement(_Strict):
    kind: Literal["https://in-toto.io/Statement/v1"] = Field(STATEMENT, alias="_type")
    subject: list[Subject]
    predicate_type: Literal["urn:nest-ssl:comparison:1"] = Field(PREDICATE, alias="predicateType")
    predicate: Claim


def seal(claim: Claim, digests: Mapping[str, str], key: Path | None = None) -> bytes:
    """The envelope around a claim on files, by their SHA-256; signed with the private key in a PEM file, if given.

    Raises:
        UserError: no such key, or the package that signs is not installed.
    """
    subjects = [Subject(name=name, digest={"sha256": digest}) for name, digest in digests.items()]
    statement = Statement(subject=subjects, predicate=claim)  # type: ignore[call-arg]
    payload = _canonical(statement.model_dump(mode="json", by_alias=True))
    signatures = [] if key is None else [_sign(payload, key)]
    envelope = Envelope(payload=base64.b64encode(payload).decode(), signatures=signatures)  # type: ignore[call-arg]
    return _canonical(envelope.model_dump(by_alias=True)) + b"\n"


def read_statement(path: Path, where: str) -> tuple[Statement, bytes, Signature | None]:
    """The statement, the bytes that were signed, and their signature, which is not checked here.

    Raises:
        UserError: it is none.
    """
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"more than {MOST:,} bytes")
        envelope = Envelope.model_validate_json(path.read_bytes())
        payload = base64.b64decode(envelope.payload, validate=True)
        statement = Statement.model_validate_json(payload)
    except (OSError, ValueError, RecursionError, binascii.Error, ValidationError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError("not the statement of a bundle", f"{where}: {first}", FIX) from error
    return statement, payload, next(iter(envelope.signatures), None)


def check_signature(payload: bytes, signature: Signature | None, key: Path, where: str) -> str:
    """The id of the key, if its owner signed these bytes.

    Raises:
        UserError: it is not signed, or with another key.
    """
    crypto = _ed25519()
    raw = _pem(key, public=True)
    if signature is None:
        raise UserError("the bundle is not signed", where, "Ask for a signed one, or leave --key out.")
    if signature.keyid != _keyid(raw):
        what = f"signed with another key ({signature.keyid[:16]}...), not the one given ({_keyid(raw)[:16]}...)"
        raise UserError(what, where, "Somebody else made or changed this bundle; do not trust it.")
    try:
        crypto.Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(signature.sig), _preimage(payload))
    except Exception as error:  # InvalidSignature is no ValueError, and the text may be no base64
        fix = "The bundle was changed after it was signed; do not trust it."
        raise UserError("the signature is not of this statement", where, fix) from error
    return signature.keyid


def _sign(payload: bytes, key: Path) -> Signature:
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(_pem(key, public=False))
    keyid = _keyid(private.public_key().public_bytes_raw())
    return Signature(keyid=keyid, sig=base64.b64encode(private.sign(_preimage(payload))).decode())


def _pem(path: Path, public: bool) -> bytes:
    """The 32 bytes of an Ed25519 key, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write it."""
    crypto = _ed25519()
    from cryptography.hazmat.primitives import serialization

    with opened(path) as stream:
        data = stream.read(1 << 16)
    try:
        if public:
            found: Any = serialization.load_pem_public_key(data)
        else:
            found = serialization.load_pem_private_key(data, password=None)
        wanted = crypto.Ed25519PublicKey if public else crypto.Ed25519PrivateKey
        if not isinstance(found, wanted):
            raise ValueError("another kind of key")
        raw: bytes = found.public_bytes_raw() if public else found.private_bytes_raw()
    except (ValueError, TypeError) as error:
        kind = "public" if public else "private"
        fix = "Make one: openssl genpkey -algorithm ed25519 -out KEY.pem; openssl pkey -in KEY.pem -pubout -out PUB.pem"
        raise UserError(f"not a {kind} Ed25519 key in PEM, without a password", str(path), fix) from error
    return raw


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        fix = "Install it: pip install nest_ssl[sign]"
        raise UserError("signatures need a package that is not installed", "cryptography", fix) from error
    return ed25519


def _keyid(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()


def _preimage(payload: bytes) -> bytes:
    """What is signed: DSSE's PAE of type and payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
