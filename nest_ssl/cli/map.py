"""Maps of names, from what a candidate calls its modules and tensors to what the reference calls them.

    nest-ssl map suggest --reference outputs/nemo --candidate outputs/made > names.yaml
    nest-ssl map check names.yaml --reference outputs/nemo --candidate outputs/made
    nest-ssl compare --reference outputs/nemo --candidate outputs/made --names names.yaml

suggest drafts one from names, shapes and initial values. check lists what is left over on either side, each with what
is nearest to it on the other; its exit code is 0 if nothing is, else 1. The grammar: nest_ssl/compare/name_map.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: a recording or the map is missing or damaged.
    """
    parser = Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="suggest|check")
    suggesting = verbs.add_parser("suggest", help="draft a map, to be read and mended")
    checking = verbs.add_parser("check", help="what a map leaves over on either side")
    checking.add_argument("map", type=Path, help="YAML, or the name of one that is shipped: huggingface_parakeet")
    for verb in (suggesting, checking):
        verb.add_argument("--reference", type=Path, default=Path("outputs/nemo"), help="default outputs/nemo")
        verb.add_argument("--candidate", type=Path, default=Path("outputs/nest"), help="default outputs/nest")
    options = parser.parse_args(argv)
    import yaml

    from nest_ssl.base.errors import visible
    from nest_ssl.compare.name_map import load_names
    from nest_ssl.compare.name_pairs import left_over, suggest
    from nest_ssl.compare.names import Renamed
    from nest_ssl.recording.reader import open_recording

    reference, candidate = (open_recording(path, verify=False) for path in (options.reference, options.candidate))
    if options.verb == "suggest":
        print(yaml.safe_dump(suggest(reference, candidate), sort_keys=False, width=120), end="")
        return 0
    found = left_over(reference, Renamed(candidate, load_names(options.map)))
    for one in found:
        nearest = f"; nearest: {', '.join(one.nearest)}" if one.nearest else "; nothing like it"
        print(visible(f"map: left over in the {one.side}: {one.name} {one.shape}{nearest}"))
    print(f"map: {len(found)} parameters and buffers are left over" if found else "map: nothing is left over")
    return int(bool(found))
