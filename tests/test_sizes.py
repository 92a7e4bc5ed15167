"""No file and no function of the product grows beyond what one reads in one go."""

import ast
from pathlib import Path

import distinf

FILE, FUNCTION = 350, 50  # lines, docstrings and signatures included
FILES = sorted(Path(distinf.__file__).parent.rglob("*.py"))


def test_no_file_is_longer_than_its_bound():
    lengths = {str(file): len(file.read_text().splitlines()) for file in FILES}
    assert {file: lines for file, lines in lengths.items() if lines > FILE} == {}


def test_no_function_is_longer_than_its_bound():
    found = {
        f"{file.name}:{node.name}": node.end_lineno - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(found) > 1000
    assert {name: lines for name, lines in found.items() if lines > FUNCTION} == {}
