"""Check a bundle offline: what can be shown again on this machine, and what is only claimed.

    nest-ssl verify comparison.tar --key maker.pub.pem

Nothing in a bundle is trusted or run: hashes, the statement, report and indexes are held against each other, and where
the tensors are in it the comparison runs again (it is unpacked into a temporary folder; TMPDIR chooses which). What no
check can notice: tensors copied from the reference into a recording with its own settings and hashes look as an honest
twin's do, and without a signature anybody can make a bundle that fits together. Exit codes: 0 all that can be checked
is right, whatever the verdict in it; 3 bad usage, or a bundle that is damaged, changed or does not belong together
(what, and where); 70 our own mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_OK, visible


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: see exit code 3.
    """
    parser = Parser(prog="nest-ssl verify", description=__doc__)
    parser.add_argument("bundle", metavar="BUNDLE.tar", type=Path, help="file that nest-ssl bundle wrote")
    parser.add_argument("--key", type=Path, help="public Ed25519 key in PEM that it must be signed with")
    options = parser.parse_args(argv)

    from nest_ssl.bundle.verify import verify_bundle

    found = verify_bundle(options.bundle, options.key)
    claim = found.claim
    print(visible(f"{claim.verdict}: {claim.candidate.label} against {claim.reference.label}"))
    for heading, lines in (("shown again here", found.shown), ("only claimed", found.claimed)):
        print(f"{heading}:")
        print(*(f"  - {visible(line)}" for line in lines), sep="\n")
    return EXIT_OK
