"""Nothing that is read can run: no pickle, no eval, no shell, no custom operators. Walks the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ipsrec_onnx", "kernels", "train", "export", "experiment", "cli", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "pty",
    "commands",
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
# As an attribute of anything; torch's model.eval() is a method without arguments and not among these.
FORBIDDEN_ATTRIBUTES = {
    "system",
    "popen",
    "read_pickle",
    "to_pickle",
    "unsafe_load",
    "register_custom_ops_library",
    "register_custom_ops",
    "load_library",
    "getoutput",
    "getstatusoutput",
}


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What is forbidden, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"import {name}") for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            yield node.lineno, f".{node.attr}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, found) for found in forbidden_calls(node))


def forbidden_calls(call: ast.Call) -> Iterator[str]:
    keywords = {word.arg: word.value for word in call.keywords}
    if isinstance(call.func, ast.Name) and call.func.id in FORBIDDEN_NAMES:
        yield f"{call.func.id}()"
    shell = keywords.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield "shell=True"
    if is_true(keywords.get("allow_pickle")) or is_true(keywords.get("trust_remote_code")):
        yield "allow_pickle or trust_remote_code"
    if (
        isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.attr in ("load", "save")
    ):
        whose = call.func.value.id
        if whose == "torch" and (call.func.attr == "save" or not is_true(keywords.get("weights_only"))):
            yield f"torch.{call.func.attr}() of more than tensors"
    if isinstance(call.func, ast.Attribute) and call.func.attr == "eval" and call.args:
        yield ".eval() of a text"


def is_true(value: ast.expr | None) -> bool:
    return value is not None and not (isinstance(value, ast.Constant) and not value.value)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_runs_nothing_that_it_reads(path: Path) -> None:
    found = list(offences(ast.parse(path.read_text(encoding="utf-8"))))
    assert not found, f"{path}: {found}"


def test_the_walk_goes_over_all_of_it() -> None:
    assert len(SOURCES) > 150


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "os.system(command)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "frame.eval(text)",
        "options.register_custom_ops_library(path)",
        "pandas.read_pickle(path)",
    ],
)
def test_the_walk_finds_what_it_looks_for(source: str) -> None:
    assert list(offences(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "torch.load(path, weights_only=True)", "np.load(path)", "subprocess.run(command, shell=False)"],
)
def test_the_walk_lets_the_rest_be(source: str) -> None:
    assert not list(offences(ast.parse(source)))
