"""Reading YAML into plain dicts, lists and strings, with the line of each key.

Scalars stay text, whatever YAML 1.1 takes them for (`off` for false, `1.20` for 1.2, `0123` for an octal
number): the model knows which type each key has. Only a plain null is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import yaml

from proxy.config.problems import ConfigError, Path, Problem, dotted

Tree = dict[str, "Tree"] | list["Tree"] | str | None

_REFERENCE: Final = re.compile(r"\$(\$\{)|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")
# A configuration has some hundred nodes; aliases within aliases could multiply them without end.
_MOST_NODES: Final = 100_000


class Document:
    """A YAML document: `tree` is its content, `lines` the line of each path, `problems` what was wrong.

    `unusable` holds the paths of values that a problem was reported for already; they are None in the tree.
    Without `environ` references to variables stay as they are. Raises ConfigError where the text is no YAML at all,
    or grows without end.
    """

    def __init__(self, text: str, environ: Mapping[str, str] | None) -> None:
        self.tree: Tree = None
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.unusable: list[Path] = []
        self._environ = environ
        self._open: set[int] = set()
        self._count = 0
        try:
            # The loader made from SafeLoader can't build objects; only nodes are asked of it here.
            loader = yaml.SafeLoader(text)
            try:
                node = loader.get_single_node()
                self._loader = loader
                if node is not None:
                    self.tree = self._read(node, ())
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 0
            raise ConfigError([Problem("", line, f"not valid YAML: {error.problem}")]) from None
        except yaml.YAMLError as error:
            raise ConfigError([Problem("", 0, f"not valid YAML: {str(error).splitlines()[0]}")]) from None

    def line(self, path: Path) -> int:
        """Return the line of `path`, or of the nearest parent that has one; 0 where none has."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 0)

    def _report(self, path: Path, line: int, message: str) -> None:
        """Add a problem, and take the value at `path` for unusable."""
        self.problems.append(Problem(dotted(path), line, message))
        self.unusable.append(path)

    def _read(self, node: yaml.Node, path: Path) -> Tree:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._count += 1
        if self._count > _MOST_NODES:
            raise ConfigError([Problem(dotted(path), line, "too large, or aliases within aliases")])
        if id(node) in self._open:
            self._report(path, line, "an alias refers to itself")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._read(item, (*path, index)) for index, item in enumerate(node.value)]
            if node.tag == "tag:yaml.org,2002:null":
                return None
            return self._expand(str(node.value), path, line)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> Tree:
        first: dict[str, int] = {}
        entries = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._report(path, line, "a key has to be a plain word")
                return None
            if key.value in first:
                message = f"written twice, first in line {first[key.value]}"
                self.problems.append(Problem(dotted((*path, key.value)), line, message))
                continue
            first[key.value] = line
            entries.append((key, value))
        node.value = entries
        self._loader.flatten_mapping(node)  # merges `<<`, before what the mapping says itself
        content: dict[str, Tree] = {}
        for key, value in node.value:
            self.lines[*path, key.value] = key.start_mark.line + 1
            content[key.value] = self._read(value, (*path, key.value))
        return content

    def _expand(self, text: str, path: Path, line: int) -> str | None:
        """Replace ${VAR} and ${VAR:-default} (also for an empty VAR, as in the shell); $${ stands for ${."""
        environ = self._environ
        if environ is None:
            return text
        failed = False

        def replacement(found: re.Match[str]) -> str:
            nonlocal failed
            escaped, name, default = found.groups()
            if escaped:
                return "${"
            if name is None:
                message = "a reference is written ${VAR} or ${VAR:-default}; $${ stands for a plain ${"
            elif default is not None:
                return environ.get(name) or str(default)
            elif name in environ:
                return environ[name]
            else:
                message = f"environment variable {name} is not set"
            if not failed:
                self._report(path, line, message)
            failed = True
            return ""

        expanded = _REFERENCE.sub(replacement, text)
        return None if failed else expanded
