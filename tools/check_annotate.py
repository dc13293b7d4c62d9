"""Fail where a line that runs without the GIL talks to Python.

    python tools/check_annotate.py FOLDER

FOLDER holds .pyx files and the .html that ``cython -a`` made of them. Cython gives each line a
score, 0 where its C code calls nothing of Python's. Judged are the bodies of all functions declared
``nogil`` and of all ``with nogil:`` blocks.
"""

import re
import sys
from pathlib import Path

LINE = re.compile(r'<pre class="cython line score-(\d+)"[^>]*>[^<]*<span class="">0*(\d+)</span>')


def indent(line):
    return len(line) - len(line.lstrip())


def nogil_lines(source):
    """Numbers, from 1, of the lines that run without the GIL."""
    lines, found = source.splitlines(), set()
    code = [line.split("#")[0].rstrip() for line in lines]
    for start, header in enumerate(code):
        stop = start
        if header.lstrip().startswith("cdef "):
            while header.count("(") > header.count(")"):  # a signature over several lines
                stop += 1
                header += code[stop]
        if not re.search(r"^\s*with nogil:$|^\s*cdef .*\).*\bnogil:$", header):
            continue
        for k in range(stop + 1, len(lines)):
            if code[k].strip():
                if indent(lines[k]) <= indent(lines[start]):
                    break
                found.add(k + 1)
    return found


def scores(html):
    """{line number: score}."""
    return {int(number): int(score) for score, number in LINE.findall(html)}


def main(folder):
    bad = checked = 0
    for path in sorted(Path(folder).glob("*.pyx")):
        source, html = path.read_text(), path.with_suffix(".html")
        if not html.exists():
            sys.exit(f"{html} is missing: was the build run with RNNFAST_ANNOTATE=1?")
        judged, lines = scores(html.read_text()), source.splitlines()
        inside = nogil_lines(source)
        if inside and not judged:
            sys.exit(f"{html}: no scores found; has Cython changed its pages?")
        checked += len(inside)
        for number in sorted(inside):
            if judged.get(number, 0):
                bad += 1
                print(f"{path.name}:{number}: score {judged[number]}: {lines[number - 1].strip()}")
    print(f"{checked} lines run without the GIL, {bad} of them talk to Python")
    return 1 if bad or not checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
