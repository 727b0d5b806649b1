"""What the operators of a place say that one side alone runs, or that are given other arguments."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

from nest_ssl.compare.findings import Note
from nest_ssl.compare.kinds import FaultKind
from nest_ssl.compare.operators import Change
from nest_ssl.recording.evidence import Operator

# Operators that say what a function is for, where no name does.
_PURPOSES = {
    r"(_softmax|_safe_softmax|\w*scaled_dot_product\w*)": FaultKind.ATTENTION,
    r"(convolution\w*|\w*_(layer|batch|group)_norm\w*)": FaultKind.CONVOLUTION_AND_NORMS,
    r"(native_dropout|bernoulli_?)": FaultKind.DROPOUT_AND_FLAGS,
    r"(_fft_\w+|stft|hann_window)": FaultKind.FEATURES,
    r"(nll_loss\w*|binary_cross_entropy\w*)": FaultKind.DECODER_AND_LOSS,
}
EXACT = 1e-6  # relative: as near as a factor is to the one that is meant
_FLOATS = re.compile(r"\b(b?float(?:8|16|32|64)\w*|double|half)\b")


def purpose_of(changes: Sequence[Change]) -> tuple[FaultKind, str] | None:
    """The one purpose that all operators with one have, and the first of them; None where there are more or none."""
    found: dict[FaultKind, str] = {}
    for change in changes:
        own = _own_name(change.reference or change.candidate)
        kind = next((kind for form, kind in _PURPOSES.items() if re.fullmatch(form, own)), None)
        if kind:
            found.setdefault(kind, own)
    return next(iter(found.items())) if len(found) == 1 else None


def kept_in(changes: Sequence[Change], rates: Collection[float]) -> Note | None:
    """One product or quotient, with the share that a dropout keeps, that one side alone makes."""
    for one in [change.reference or change.candidate for change in changes if change.kind in ("missing", "added")]:
        values = [value for value in one.arguments.values() if isinstance(value, float) and value > 0] if one else []
        if one is None or not re.fullmatch("(mul|div)_?", _own_name(one)):
            continue
        for rate in rates:
            if any(math.isclose(share, 1 - rate, rel_tol=EXACT) for value in values for share in (value, 1 / value)):
                return Note("kind_kept", {"operator": one.name, "share": float(f"{1 - rate:.6g}")})
    return None


def casts_in(changes: Sequence[Change]) -> Note | None:
    """A conversion between floating-point types that one side alone makes, or makes to another type."""
    for change in changes:
        types = [_types(one) for one in (change.reference, change.candidate)]
        if change.kind in ("missing", "added"):
            one = change.reference or change.candidate
            given, made = types[change.reference is None]
            if _own_name(one) == "_to_copy" and given and made and given != made:
                return Note("kind_cast", {"operator": one.name if one else "", "given": given, "made": made})
        elif all(given for given, _ in types) and types[0] != types[1]:
            return Note("kind_dtype", {"reference": types[0][0], "candidate": types[1][0]})
    return None


def edits_in(changes: Sequence[Change]) -> Note | None:
    """An operator that edits what it is given, in place of the one that makes a new tensor; or a copy left out."""
    count: Counter[str] = Counter()  # how many more of each the candidate runs
    others = 0
    for change in changes:
        for one, sign in ((change.reference, -1), (change.candidate, 1)):
            if one and change.kind in ("missing", "added"):
                count[_own_name(one)] += sign
        others += change.kind == "arguments" or _own_name(change.reference or change.candidate) not in _COPIES
    for name, number in count.items():
        if name.endswith("_") and number * count[name[:-1]] < 0:
            return Note("kind_in_place", {"edits": name, "makes": name[:-1]})
    copied = next((name for name in _COPIES if count[name] < 0), None)
    return Note("kind_no_copy", {"operator": copied}) if copied and not others else None


_COPIES = ("clone", "copy_")


def _own_name(operator: Operator | None) -> str:
    """``aten.add_.Tensor`` is ``add_``."""
    parts = operator.name.split(".") if operator else []
    return parts[1] if len(parts) > 1 else ""


def _types(operator: Operator | None) -> tuple[str, str]:
    """The floating-point types of the first tensor given and the first made; empty for any other type."""
    sides = (operator.tensors, operator.outputs) if operator else ([], [])
    found = [_FLOATS.search(side[0]) if side else None for side in sides]
    return tuple(match[1] if match else "" for match in found)  # type: ignore[return-value]
