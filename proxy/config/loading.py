"""From a file, or from environment variables alone, to a Config, or to all that is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as File
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.config import checks
from proxy.config.document import Document, Tree
from proxy.config.model import Config
from proxy.config.problems import ConfigError, Path, Problem, dotted


def load(path: File, environ: Mapping[str, str], *, new_keys_file: bool = False) -> Config:
    """Return the configuration in the file `path`, its ${…} replaced from `environ`.

    With `new_keys_file` the file of keys need not exist yet. Raises ConfigError with every problem that was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem("", 0, f"cannot read {path}: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("", 0, f"{path} is not UTF-8 text")]) from None
    return parse(text, environ, path.parent, new_keys_file=new_keys_file)


def parse(
    text: str, environ: Mapping[str, str], directory: File = File(), *, new_keys_file: bool = False
) -> Config:
    """Return the configuration in `text`; its relative paths start at `directory`.

    With `new_keys_file` the file of keys need not exist yet. Raises ConfigError with every problem that was found.
    """
    document = Document(text, environ)
    config, found = validate(document.tree, directory, document.unusable, new_keys_file=new_keys_file)
    problems = [
        *document.problems,
        *(Problem(dotted(at), document.line(at), message) for at, message in found),
    ]
    if config is None or problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return config


def validate(
    tree: Tree, directory: File, unusable: Iterable[Path] = (), *, new_keys_file: bool = False
) -> tuple[Config | None, list[tuple[Path, str]]]:
    """Return the configuration in `tree`, or None, and what is wrong with it by path.

    Nothing is reported about `unusable` values and what depends on them. What holds between keys is checked
    even where some are wrong: with defaults in their place, and only between the others.
    """
    context = {"directory": directory}
    problems: list[tuple[Path, str]] = []
    wrong = set(unusable)
    blanked = set(unusable)
    config = None
    while config is None and () not in blanked:
        try:
            config = Config.model_validate(tree, context=context)
        except ValidationError as failure:
            for error in failure.errors(include_url=False):
                path = tuple(part for part in error["loc"] if part != "[key]")
                if not _touches(path, wrong):
                    problems.append((path, _message(error)))
                # Where a value was blanked already and something is still wrong, its parent goes.
                while path in blanked and path:
                    path = path[:-1]
                blanked.add(path)
                tree = _blank(tree, path, error["type"] == "extra_forbidden" or "[key]" in error["loc"])
            wrong |= {path for path, _ in problems}
    if config is not None:
        for path, message, because in checks.findings(config, new_keys_file=new_keys_file):
            if not any(_touches(each, wrong) for each in (path, *because)):
                problems.append((path, message))
    return (None if problems else config), problems


def _touches(path: Path, others: Iterable[Path]) -> bool:
    return any(path[: len(other)] == other or other[: len(path)] == path for other in others)


def _blank(tree: Tree, path: Path, remove: bool) -> Tree:
    """Return a copy of `tree` with nothing at `path`; a key goes if `remove`, else it has its default."""
    if not path:
        return None
    part, rest = path[0], path[1:]
    if isinstance(tree, dict) and isinstance(part, str) and part in tree:
        if remove and not rest:
            return {key: value for key, value in tree.items() if key != part}
        return {**tree, part: _blank(tree[part], rest, remove)}
    if isinstance(tree, list) and isinstance(part, int):
        return [_blank(item, rest, remove) if index == part else item for index, item in enumerate(tree)]
    return tree


_MESSAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "missing": lambda _: "is required",
    "bool_parsing": lambda _: "true or false is needed",
    "int_parsing": lambda _: "a whole number is needed",
    "int_from_float": lambda _: "a whole number is needed",
    "string_type": lambda _: "text is needed",
    "list_type": lambda _: "a list is needed",
    "dict_type": lambda _: "keys and values are needed",
    "model_type": lambda _: "keys and values are needed",
    "literal_error": lambda context: f"one of {context['expected'].replace(chr(39), '')} is needed",
    "value_error": lambda context: str(context["error"]),
    "greater_than": lambda context: f"more than {context['gt']:g} is needed",
    "greater_than_equal": lambda context: f"at least {context['ge']:g} is needed",
    "less_than_equal": lambda context: f"at most {context['le']:g} is possible",
    "too_short": lambda context: f"at least {context['min_length']} is needed",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda context: f"at most {context['max_length']} characters are possible",
    "string_pattern_mismatch": lambda _: "lower-case letters, digits, - and _ are needed, a letter first",
}


def _message(error: ErrorDetails) -> str:
    """Say in our words what is wrong; never with the value, which may be a secret."""
    if error["type"] == "extra_forbidden":
        return _unknown_key(error["loc"])
    wording = _MESSAGES.get(error["type"])
    return wording(error.get("ctx", {})) if wording is not None else error["msg"]


def _unknown_key(path: Path) -> str:
    known = _keys_beside(path)
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known are {', '.join(known)}"


def _keys_beside(path: Path) -> list[str]:
    """Return the keys that the model has where `path` points, found by walking its annotations."""
    model: type[BaseModel] = Config
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        if field is not None and (inner := _model_in(field.annotation)) is not None:
            model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
