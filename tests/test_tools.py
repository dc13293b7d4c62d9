"""The checks that make runs can fail."""

import importlib.util
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool():
    """A function that imports a file of tools/."""

    def load(name):
        path = TOOLS / f"{name}.py"
        if not path.exists():
            pytest.skip("tools/ does not lie beside tests/")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


SOURCE = """\
cdef int f(int a,
           int b) noexcept nogil:
    # comment
    return a + b

def g(x):
    y = len(x)
    with nogil:
        h()
    return y
"""


def page(**scores):
    line = '<pre class="cython line score-{}" onclick="">+<span class="">{:02d}</span>: a</pre>\n'
    return "".join(line.format(score, int(name[1:])) for name, score in scores.items())


def test_annotate_finds_the_lines_without_the_gil(tool):
    assert tool("check_annotate").nogil_lines(SOURCE) == {4, 9}


@pytest.mark.parametrize(("scores", "status"), [
    ({"n4": 0, "n7": 12, "n9": 0}, 0),
    ({"n4": 5, "n7": 12, "n9": 0}, 1),
    ({"n4": 0, "n7": 12, "n9": 2}, 1),
])  # fmt: skip
def test_annotate_fails_where_such_a_line_talks_to_python(tool, tmp_path, scores, status):
    (tmp_path / "m.pyx").write_text(SOURCE)
    (tmp_path / "m.html").write_text(page(**scores))
    assert tool("check_annotate").main(tmp_path) == status


def test_annotate_needs_something_to_judge(tool, tmp_path):
    (tmp_path / "m.pyx").write_text("def f(): pass\n")
    (tmp_path / "m.html").write_text(page(n1=3))
    assert tool("check_annotate").main(tmp_path) == 1


def test_figures_of_other_libraries_are_pasted(tool, tmp_path, monkeypatch):
    table = tool("readme_table")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    results = tmp_path / "results"
    results.mkdir()
    page = "before\n<!-- {0}:start -->\nold\n<!-- {0}:end -->\n"
    (tmp_path / "README.md").write_text(page.format("peers") + page.format("torch"))
    (tmp_path / "docs" / "peers.md").write_text(
        page.format("grid-1-avx2") + page.format("promises-avx2"))  # fmt: skip
    (results / "grid-1-avx2.md").write_text("Zen, here\n\n- train: 1.2 times\n\n| a | b |\n")
    (results / "grid-1-avx2.png").write_bytes(b"picture")
    (results / "torch.md").write_text("| LSTM | 1.3 |\n")
    table.main(results)
    readme, peers = (p.read_text() for p in (tmp_path / "README.md", tmp_path / "docs/peers.md"))
    assert readme == (
        page.format("peers").replace("old", "Kernels avx2, Zen:\n\n- train: 1.2 times")
        + page.format("torch").replace("old", "| LSTM | 1.3 |"))  # fmt: skip
    assert peers.startswith("before\n<!-- grid-1-avx2:start -->\nZen, here\n")
    assert "| a | b |" in peers
    assert peers.count("old") == 1  # promises: not measured, not touched
    assert (tmp_path / "docs" / "peers-avx2.png").read_bytes() == b"picture"
