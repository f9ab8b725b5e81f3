"""What the documents say: every setting is there, commands parse, defaults are true."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from torch.distributed.run import get_args_parser

from heads.extra_terms import EXTRA_TERMS
from heads.margins import MARGINS, Margin
from training.config import Config, DataConfig, load_config, override

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("pip", "pytest", "ruff", "mypy")  # modules that are not ours
ANY = Config(data=DataConfig(train="a.rec"))  # every run names its data
SECTIONS = {section.name: section.default_factory for section in fields(Config)}


# --- docs/settings.md ---


def comments() -> dict[tuple[str, str], str]:
    """By (class, name): what stands beside a setting in training/config/."""
    sources = [path.read_text() for path in (ROOT / "training/config").glob("*.py")]
    return {
        (node.name, entry.target.id): source.splitlines()[entry.end_lineno - 1].partition("  # ")[2]
        for source in sources
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for entry in node.body
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
    }


def settings_table() -> list[str]:
    """The lines that docs/settings.md must have, in their order."""
    meanings, lines = comments(), []
    for line in ANY.lines():
        key, _, default = line.partition("=")
        section, name = key.split(".")
        kind = get_type_hints(SECTIONS[section])[name]
        allowed = f"{', '.join(get_args(kind))}; " if get_origin(kind) is Literal else ""
        meaning = meanings[SECTIONS[section].__name__, name]
        assert meaning, (
            f"{key}: say in training/config/{section}.py what it is, in a comment beside it"
        )
        shown = f"`{default}`" if default and key != "data.train" else ""
        lines.append(f"| `{key}` | {shown} | {allowed}{meaning} |")
    return lines


def test_every_setting_has_its_line_in_docs_settings():
    written = (ROOT / "docs/settings.md").read_text().splitlines()
    there = [line for line in written if line.startswith("| `")]
    expected = settings_table()
    assert [line for line in expected if line not in there] == [], "put these into docs/settings.md"
    assert there == expected, "no others, and in this order"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_a_document_gives_a_value_exist(document):
    text = document.read_text()
    named = re.findall(rf"\b({'|'.join(SECTIONS)})\.(\w+)(?:\.\w+)?=", text)
    known = {(section, field.name) for section in SECTIONS for field in fields(SECTIONS[section])}
    assert set(named) - known == set()


# --- commands ---


class Parsed(BaseException):
    """Ends a command as soon as its arguments are read."""


def documented() -> Iterator[tuple[str, str]]:
    """(document, command line) of every command in a block or a span of code."""
    for document in DOCUMENTS:
        text = document.read_text()
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
        for line in lines:
            for command in re.split(r";|&&|\|\|", re.sub(r"\s+# .*", "", line)):
                words = command.strip().removeprefix("do ").strip()
                if re.match(r"(python3?|torchrun) .*(\.py|-m )|make \w", words):
                    yield document.name, words


def words_of(command: str) -> list[str]:
    """The program and its words, without what starts it, and what is not meant literally."""
    plain = re.sub(r"\[section\.key=value \.\.\.\]", "", command)
    words = [word.removesuffix("...") for word in shlex.split(plain, comments=True)]
    program, *words = [word for word in words if word not in ("", "…", "--help")]
    if program == "torchrun":
        launch = get_args_parser().parse_args(words)
        return [launch.training_script, *launch.training_script_args]
    return [program, *words] if program == "make" else words[words[0] == "-m" :]


def module_of(program: str) -> str:
    path = ROOT / program.replace(".", "/")  # of what follows -m
    if (path / "__main__.py").exists():
        return f"{program}.__main__"
    return program.removesuffix(".py").replace("/", ".")


def parse(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a command of ours makes of its arguments; SystemExit where it refuses them."""
    for name in ("parse_args", "parse_intermixed_args"):
        whole = getattr(argparse.ArgumentParser, name)

        def stop(parser: argparse.ArgumentParser, args: Any = None, whole: Any = whole) -> None:
            raise Parsed(whole(parser, args))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(module_of(program)).main()
    return parsed.value.args[0]


@pytest.mark.parametrize(("document", "command"), sorted(set(documented())))
def test_a_documented_command_is_understood(document, command, monkeypatch):
    program, *words = words_of(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words if "=" not in word and word not in targets] == []
    elif words and program not in OTHERS:  # else it is only named
        arguments = parse(program, words, monkeypatch)
        if hasattr(arguments, "overrides"):
            path = ROOT / arguments.config
            override(load_config(path) if path.exists() else ANY, arguments.overrides)


# --- docs/heads.md ---


def test_the_defaults_of_the_losses_are_true():
    """Of every loss that can be named, and of every argument but those that all have."""
    _, _, after = (ROOT / "docs/heads.md").read_text().partition("| `head.loss` |")
    table = after.partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|[^|]+\|$", table, re.MULTILINE)
    written = {
        loss: {name: yaml.safe_load(value) for name, value in re.findall(r"`(\w+)` ([\w.]+)", text)}
        for loss, text in rows
    }
    common = {field.name for field in fields(Margin)}
    true = {
        loss: {field.name: field.default for field in fields(margin) if field.name not in common}
        for loss, margin in MARGINS.items()
    }
    for loss in ("elastic_arcface", "elastic_cosface"):
        true[loss]["std"] = MARGINS[loss].paper_stds[False]  # which its default, None, stands for
    assert written == true


def test_the_defaults_that_all_losses_have_are_true():
    text = (ROOT / "docs/heads.md").read_text()
    (scale,) = re.findall(r"^All take `scale` \((\d+)\)", text, re.MULTILINE)
    assert {margin().scale for margin in MARGINS.values()} == {float(scale)}


def test_the_defaults_of_the_extra_terms_are_true():
    _, _, after = (ROOT / "docs/heads.md").read_text().partition("| `head.extra_terms` |")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", after.partition("\n\n")[0], re.MULTILINE)
    written = {
        name: {key: yaml.safe_load(value) for key, value in re.findall(r"`(\w+)` ([\d.]+)", text)}
        for name, text in rows
    }
    assert written == {
        name: {field.name: field.default for field in fields(term)}
        for name, term in EXTRA_TERMS.items()
    }


# --- links ---

PAGES = [*DOCUMENTS, ROOT / "AGENTS.md", ROOT / "CHANGELOG.md", ROOT / "configs/README.md"]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([\w-]*)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), (target, anchor)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index] == []
