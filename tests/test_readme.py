"""Every ```python block of README.md and docs/*.md runs; the blocks of a page share their names.
A block of >>> lines must also print what it shows."""

import doctest
import re
from pathlib import Path

import pytest

import rnnfast
from tests.extras import extras

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
         if path.exists()]  # fmt: skip
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path):
    """(number of the line before it, code) of each block."""
    text = path.read_text(encoding="utf-8")
    return [(text[: m.start(1)].count("\n"), m[1]) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p)], ids=lambda path: path.name)
def test_blocks_run(path, use_isa, use_denormals, use_engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": path.stem}
    for line, code in blocks(path):
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, names, path.name, path.name, line)
            doctest.DebugRunner().run(test)
            continue
        code = "\n" * line + code  # an error then names the line of the page
        with extras():
            exec(compile(code, path.name, "exec"), names)


def test_the_pages_have_blocks():
    assert PAGES, "no README.md beside tests/"
    assert len(blocks(ROOT / "README.md")) >= 6


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_pages_name_all_that_is_public():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    for name in rnnfast.__all__:
        assert name in text, name
