"""A section of the configuration: a frozen, typed model of its keys, their values and their defaults.

    masking = read(Masking, {"feat_in": 80, "block_size": 40}, "model.masking")

Keys are NeMo's. A field is a key that is used. Keys that NeMo has and that change nothing here are `ACCEPTED`, each
with a note for the user or an empty one. Keys that would change something are `REFUSED` unless switched off, each with
what to do instead. Whatever else stands in a section is a mistake, and the nearest key is named.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nest_ssl.base.errors import UserError
from nest_ssl.base.spelling import nearest

Whole = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Number = int | float  # 5 stays 5 and does not become 5.0: NeMo keeps it so, in the optimizer and its state too
Probability = Annotated[Number, Ge(0), Le(1)]
NO_SECTION = "Give its keys and their values."
NEMO = "nemo.collections.asr."  # where the classes named by `_target_` are


class Section(BaseModel):
    """The base of all sections. Whole numbers are no booleans, text is no number: what YAML says is what is meant."""

    # Built when first used: of sixty sections a configuration has a dozen, and each takes milliseconds.
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    TARGETS: ClassVar[tuple[str, ...]] = ()  # NeMo's classes that `_target_` may name; none: the key is not there
    CLASSES: ClassVar[tuple[str, ...]] = ()  # NeMo's classes that `target`, which need not be there, may name
    ACCEPTED: ClassVar[Mapping[str, str]] = {}
    REFUSED: ClassVar[Mapping[str, str]] = {}
    RENAMED: ClassVar[Mapping[str, str]] = {}  # old keys that are not taken any more -> today's

    @classmethod
    def known(cls) -> set[str]:
        """Every key that may stand in the section."""
        return {*cls.fields(), *cls.ACCEPTED, *cls.REFUSED, *(("_target_",) if cls.TARGETS else ())}

    @classmethod
    def check_kind(cls, given: Mapping[str, Any]) -> None:
        """Raise `Unfit` if the section is of a kind that is not offered: said before its keys are called unknown."""

    @classmethod
    @functools.cache
    def fields(cls) -> Mapping[str, FieldInfo]:
        """The fields by their keys."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}


SectionType = TypeVar("SectionType", bound=Section)


class Unfit(Exception):
    """Settings of one section that contradict each other; `key` names one of them, below that section."""

    def __init__(self, what: str, key: str, fix: str) -> None:
        super().__init__(what, key, fix)
        self.what, self.key, self.fix = what, key, fix


def silent(names: str) -> dict[str, str]:
    """`ACCEPTED` keys without a note."""
    return dict.fromkeys(names.split(), "")


def read(cls: type[SectionType], given: Mapping[str, Any], where: str = "") -> SectionType:
    """A section's settings.

    Args:
        cls: which section.
        given: its keys and values; OmegaConf's containers too, references resolved.
        where: its path in the configuration, for messages.

    Raises:
        UserError: a key that is unknown, missing or refused, a value of another kind, or values that do not fit.
    """
    values = plain(given)
    if not isinstance(values, dict):
        raise UserError("a section is missing", where, NO_SECTION)
    check_keys(cls, values, where)
    settings: dict[str, Any] = {}
    for key, value in values.items():
        below = f"{where}.{key}" if where else key
        if key == "_target_" and cls.TARGETS:
            _check_target(cls, value, below)
        elif key in cls.REFUSED and value not in (None, False, 0, "", [], {}):
            raise UserError(f"not supported: {in_yaml(value)}", below, cls.REFUSED[key])
        elif key in cls.fields():
            nested = sections_of(cls.fields()[key])
            is_section = bool(nested) and value is not None
            settings[key] = read(fitting(nested, value), value, below) if is_section else value
    if cls.TARGETS and "_target_" not in values and where:
        _check_target(cls, None, f"{where}._target_")
    try:
        return cls.model_validate(settings)
    except Unfit as error:
        raise UserError(error.what, f"{where}.{error.key}" if where else error.key, error.fix) from error
    except ValidationError as error:
        raise _in_one_line(cls, error, settings, where) from error


def check_keys(cls: type[Section], given: Mapping[str, Any], where: str = "") -> None:
    """Refuse the first key that no section knows.

    Raises:
        UserError: it, with the nearest known one.
    """
    try:
        cls.check_kind(given)
    except Unfit as error:
        raise UserError(error.what, f"{where}.{error.key}" if where else error.key, error.fix) from error
    for key, value in given.items():
        below = f"{where}.{key}" if where else str(key)
        if key not in cls.known():
            raise UserError("unknown key", below, _nearest(str(key), cls, where))
        nested = sections_of(cls.fields()[key]) if key in cls.fields() else ()
        if nested and isinstance(value, Mapping):
            check_keys(fitting(nested, value), value, below)


def sections_of(field: FieldInfo) -> tuple[type[Section], ...]:
    """The kinds of section that a field may hold; none if it is a value."""
    kinds = _members(field.annotation)
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))


def takes_text(root: type[Section], path: str) -> bool:
    """Whether the key of that path may hold text; true of keys that are not known or handed on as they are."""
    kinds: tuple[type[Section], ...] = (root,)
    *sections, key = path.split(".")
    for name in sections:
        field = kinds[0].fields().get(name)
        kinds = sections_of(field) if field else ()
        if not kinds:
            return True
    field = kinds[0].fields().get(key)
    return field is None or any(member in (str, Any) for member in _members(field.annotation))


def plain(value: Any) -> Any:
    """Nested mappings and sequences (OmegaConf's too) as dicts and lists, references resolved."""
    # Importing it takes a while, and before somebody has there is none of its containers.
    if (omegaconf := sys.modules.get("omegaconf")) and isinstance(value, omegaconf.Container):
        value = omegaconf.OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def in_yaml(value: Any) -> str:
    """A value as it is written in a YAML file."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- messages


def fitting(kinds: Sequence[type[SectionType]], value: Any) -> type[SectionType]:
    """The kind that `_target_` or `target` names; the first where it names none of them."""
    target = (value.get("_target_") or value.get("target")) if isinstance(value, Mapping) else None
    name = str(target).rsplit(".", 1)[-1]
    return next((kind for kind in kinds if name in kind.TARGETS + kind.CLASSES), kinds[0])


def _check_target(cls: type[Section], target: Any, where: str) -> None:
    name = str(target).rsplit(".", 1)[-1]
    if not str(target).startswith(NEMO) or name not in cls.TARGETS:
        raise UserError(f"not supported: {in_yaml(target)}", where, f"Only NeMo's {' or '.join(cls.TARGETS)} is.")


def _nearest(key: str, cls: type[Section], where: str) -> str:
    """`Did you mean ...?`: a like key of the same section, else of another one; not a key that is unlike."""
    prefix = f"{where}." if where else ""
    if key in cls.RENAMED:
        today = cls.RENAMED[key]
        return f"Today it is {today if '.' in today else prefix + today}."
    near = nearest(key, cls.known())
    if near:
        return f"Did you mean {prefix}{near}?"
    from nest_ssl.config.schema import Experiment  # the whole tree, which is made of sections

    shortest = {path.rsplit(".", 1)[-1]: path for path in sorted(_paths(Experiment, ""), key=len, reverse=True)}
    near = nearest(key, shortest)
    return f"Did you mean {shortest[near]}?" if near else "Leave it out."


def _paths(cls: type[Section], where: str) -> Iterator[str]:
    for key in sorted(cls.known()):
        yield f"{where}{key}"
        for kind in sections_of(cls.fields()[key])[:1] if key in cls.fields() else ():
            yield from _paths(kind, f"{where}{key}.")


def _in_one_line(cls: type[Section], error: ValidationError, values: Mapping[str, Any], where: str) -> UserError:
    """The first of pydantic's complaints, in our words."""
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    below = f"{where}.{key}" if where else key
    if first["type"] == "missing":
        if sections_of(cls.fields()[key]):
            return UserError("a section is missing", below, NO_SECTION)
        return UserError("a key is missing", below, "Give it a value.")
    if sections_of(cls.fields()[key]) and values[key] is None:
        return UserError("a section is null", below, NO_SECTION)
    field, value = cls.fields()[key], values[key]
    fix = f"Supported: {', '.join(dict.fromkeys(_choices(field.annotation, field.metadata)))}."
    if isinstance(value, str) and not isinstance(yaml.safe_load(value or "''"), str):
        return UserError(f"quoted text in place of a value: {value!r}", below, f"Write {value} without the quotes.")
    return UserError(f"not supported: {in_yaml(value)}", below, fix)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without their annotations; a type alone is its only member."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return (annotation,)


def _choices(annotation: Any, metadata: Collection[Any] = ()) -> Iterator[str]:
    """What a value may be, in words."""
    if get_origin(annotation) is Annotated:
        annotation, *own = get_args(annotation)
        metadata = [*metadata, *own]
    if get_origin(annotation) in (Union, types.UnionType):
        parts = get_args(annotation)
        for part in parts:
            if not (part is int and float in parts):  # any number is said once
                yield from _choices(part, metadata)
    elif get_origin(annotation) is Literal:
        yield from map(in_yaml, get_args(annotation))
    elif get_origin(annotation) is list:
        yield f"a list of {' or '.join(_choices(get_args(annotation)[0]))}"
    else:
        words = {int: "any whole number", float: "any number", str: "text", bool: "true or false", type(None): "null"}
        limits = [f" from {m.ge}" for m in metadata if isinstance(m, Ge)]
        limits += [f" above {m.gt}" for m in metadata if isinstance(m, Gt)]
        limits += [f" to {m.le}" for m in metadata if isinstance(m, Le)]
        yield words.get(annotation, "a group of keys") + ("".join(limits) if annotation in (int, float) else "")
