"""The documents' code works and their links lead to files: fenced blocks are run or compiled, by their language.

python: run on the CPU, the blocks of a document one after the other in one namespace. Skipped where a package that it
imports is not here. "python gpu", which needs a GPU or a package for one, is only compiled.
c, cpp: compiled against include/. sh: read by sh without running. cmake, text and rust: not looked at.
"""

import ast
import importlib.util
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMPILERS = {
    "c": ["cc", "-std=c99", "-x", "c"],
    "cpp": ["c++", "-std=c++20", "-x", "c++"],
}
NOT_CODE = {"cmake", "text", "rust", "toml", "diff", ""}  # Rust: bindings/rust/candle-foveal/tests/documents.rs


def blocks_of(path):
    text = path.read_text()
    for match in FENCED.finditer(text):
        line = text.count("\n", 0, match.start(2))
        yield pytest.param(path, match[1], match[2], line, id=f"{path.relative_to(ROOT)}:{line}")


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/decisions").glob("*.md")])
BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]


def missing_package(code):
    """A package that the code imports and that is not installed; None if all are."""
    for node in ast.walk(ast.parse(code)):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                return name
    return None


@pytest.fixture(scope="module")
def namespaces():
    return {}


@pytest.mark.parametrize("path, language, code, line", BLOCKS)
def test_code_works(path, language, code, line, namespaces):
    if language in NOT_CODE:
        return
    if language in COMPILERS:
        command = [*COMPILERS[language], "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", ROOT / "include", "-"]
        subprocess.run(command, input=code, text=True, check=True)
    elif language == "sh":
        subprocess.run(["sh", "-n"], input=code, text=True, check=True)
    else:
        assert language in ("python", "python gpu"), f"{path}:{line}: a block of {language!r} is of no known language"
        program = compile("\n" * line + code, path, "exec")  # so that an error names the document's line
        if language == "python gpu":
            return
        if missing := missing_package(code):
            pytest.skip(f"{missing} is not installed")
        exec(program, namespaces.setdefault(path, {}))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", FENCED.sub("", path.read_text()))
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing, f"{path} links to what is not there: {missing}"
