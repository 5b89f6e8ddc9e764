"""What is written for Terraform is what was meant, whatever the strings hold."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
from pathlib import Path

import hcl2
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.cloudflare.hcl import Block, Expression, Value, document, quoted, strings
from proxy.errors import SluiceError


@settings(deadline=None)
@given(st.text())
@example('a"b\\')
@example('${file("/etc/passwd")} %{ if true } $${x} $${ %%{')
@example("a\nb\r\tc\x00\x1b\x7f\x85\u2028")
def test_a_string_reads_back(text: str) -> None:
    literal = quoted(text)
    assert strings(literal) == [text]
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in literal)
    assert not _templates(literal)


def _templates(literal: str) -> bool:
    """Tell whether Terraform would take a part of `literal` for a template."""
    return any(mark in literal.replace("$${", "").replace("%%{", "") for mark in ("${", "%{"))


# Without backslashes and %%{: python-hcl2 misses the end behind two backslashes, and knows no %%%{. Terraform does,
# see the last test.
@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\\")))
@example('a"b')
@example("# no comment // here /* nor here")
@example('"}\nresource "x" "y" {')
@example('${file("/etc/passwd")} %{ if true } $${x} %%{')
def test_another_reader_ends_a_string_in_the_same_place(text: str) -> None:
    assume("%%{" not in text)
    body = (("before", 1), ("value", text), ("behind", True))
    read = hcl2.load(io.StringIO(document([Block("output", ("x",), body)])))
    (output,) = read["output"]
    found = next(iter(output.values()))
    assert (found["before"], found["value"], found["behind"]) == (1, quoted(text), True)


@settings(deadline=None)
@given(
    st.lists(st.text(), max_size=4), st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text())
)
def test_a_document_with_any_text_reads_back(texts: list[str], named: dict[str, str]) -> None:
    block = Block(
        "resource", ("kind", "name"), (("list", texts), ("object", named), ("on", True), ("count", 3))
    )
    assert strings(document([block])) == ["kind", "name", *texts, *named.values()]


@pytest.mark.parametrize("text", ['"', '"a\\', "{", "(]", "}", 'x = "a\nb"'])
def test_what_is_not_closed_is_told(text: str) -> None:
    with pytest.raises(SluiceError, match="Terraform file"):
        strings(text)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a\n", "1a", "${a}", "ä"])
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(SluiceError, match="is no name"):
        document([Block("variable", (), ((name, "x"),))])


def test_an_expression_that_breaks_out_is_not_written() -> None:
    with pytest.raises(SluiceError):
        document([Block("output", ("x",), (("value", Expression('"a')),))])


def test_layout_is_that_of_terraform_fmt() -> None:
    inner = Block("lifecycle", (), (("create_before_destroy", True),))
    body: tuple[tuple[str, Value] | Block, ...] = (
        ("a", "x"),
        ("long_name", 1),
        ("of", {"k": "v", "kk": [1, 2]}),
        ("rows", [{"a": 1}]),
        ("z", []),
        inner,
    )
    assert document([Block("resource", ("t", "n"), body, "Why."), Block("provider", ("p",), ())]) == (
        "# Why.\n"
        'resource "t" "n" {\n'
        '  a         = "x"\n'
        "  long_name = 1\n"
        "  of = {\n"
        '    k  = "v"\n'
        "    kk = [1, 2]\n"
        "  }\n"
        "  rows = [\n"
        "    {\n"
        "      a = 1\n"
        "    },\n"
        "  ]\n"
        "  z = []\n"
        "\n"
        "  lifecycle {\n"
        "    create_before_destroy = true\n"
        "  }\n"
        "}\n"
        "\n"
        'provider "p" {}\n'
    )


@pytest.mark.skipif(shutil.which("terraform") is None, reason="no package registry has Terraform")
def test_terraform_itself_reads_what_was_meant(tmp_path: Path) -> None:
    chance = random.Random(20261128)
    letters = 'ab"\\${%}\n\t\x00\x7f\u2028\u00e9#/*'
    texts = ["".join(chance.choices(letters, k=chance.randrange(12))) for _ in range(300)]
    texts += [
        'a"b\\',
        "${path.module}",
        "%{ if true }x%{ endif }",
        "$${x}",
        "%%{x}",
        "%%%{",
        "$$$${",
        "$",
        "%",
        "$$",
    ]
    place = tmp_path / "main.tf"
    place.write_text(document([Block("output", ("x",), (("value", texts), ("description", "any text")))]))

    def terraform(*arguments: str) -> str:
        done = subprocess.run(
            ["terraform", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    terraform("fmt", "-check", "-diff")
    terraform("init", "-backend=false")
    terraform("apply", "-auto-approve")
    assert json.loads(terraform("output", "-json"))["x"]["value"] == texts
