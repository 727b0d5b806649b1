"""Every key and value of the composed configuration, file and overrides alike, against the schema.

    cfg, settings = read_config(["size=tiny"])      # a DictConfig for NeMo, an `Experiment` for us

A mistake in a file is reported with the file and the line. Neither torch nor Lightning is imported for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import CONF, DEFAULT_NAME, GROUPS, chosen_groups, compose, config_file
from nest_ssl.config.schema import Experiment
from nest_ssl.config.section import fitting, plain, read, sections_of


def read_config(
    overrides: Sequence[str] = (), config_path: str | Path | None = None, config_name: str = DEFAULT_NAME
) -> tuple[DictConfig, Experiment]:
    """The resolved configuration, as a tree and as typed settings. Arguments as `compose` has them.

    Raises:
        UserError: the first thing that is wrong in it.
    """
    cfg = compose(overrides, config_path, config_name)
    given = {override.lstrip("+~").partition("=")[0]: override for override in overrides}
    folder, name = config_file(config_path, config_name)
    choices = chosen_groups(folder, name) | {key: given[key].partition("=")[2] for key in GROUPS if key in given}
    places = [folder / group / f"{choice}.yaml" for group, choice in choices.items()]
    # In the order of their say: the main file, and those of the groups chosen in it or on the command line.
    files = [folder / f"{name}.yaml"] + [p if p.is_file() else CONF / p.parent.name / p.name for p in places]
    texts = [*given.values(), *(file.read_text(encoding="utf-8") for file in files)]
    tree = plain(cfg)
    model = fitting(sections_of(Experiment.fields()["model"]), tree["model"])
    for key in {key for text in texts for key in re.findall(r"\$\{([\w.]+)\}", text)}:
        # What something refers to may be a key of the author's own.
        section, name = (tree["model"], key[6:]) if key.startswith("model.") else (tree, key)
        if name not in (model if section is not tree else Experiment).known():
            section.pop(name, None)
    try:
        return cfg, read(Experiment, tree)
    except UserError as error:
        key = error.where.partition("=")[0].strip()
        on_command_line = any(f"{key}.".startswith(f"{k}.") or k.startswith(f"{key}.") for k in given)
        place = None if on_command_line else locate(key, files)
        raise UserError(error.what, f"{error.where} ({place})" if place else error.where, error.fix) from error


def locate(key: str, files: Sequence[Path]) -> str | None:
    """File and line of a key, a dotted path, or of the section that lacks it, in the last file that has it."""
    found: tuple[int, str] = (0, "")
    for file in files:
        node, depth, line = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), 0, 0
        for name in key.split("."):
            children = node.value if isinstance(node, yaml.MappingNode) else ()
            match = next(((k, v) for k, v in children if k.value == name), None)
            if match is None:
                break
            depth, line, node = depth + 1, match[0].start_mark.line + 1, match[1]
        if depth and depth >= max(found[0], key.count(".")):
            found = (depth, f"{file}, line {line}")
    return found[1] or None
