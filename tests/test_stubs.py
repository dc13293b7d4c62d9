"""The stubs have every public function and class of their modules, with the same parameters."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import rnnfast
from tests.optional import optional

PACKAGE = Path(rnnfast.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.pyi"))


def parameters(node):
    """[(name, by keyword only, has a default)] of a stub's function."""
    a = node.args
    plain = a.posonlyargs + a.args
    found = [(p.arg, False, k >= len(plain) - len(a.defaults)) for k, p in enumerate(plain)]
    only = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    found += [(p.arg, True, default is not None) for p, default in only]
    return found, bool(a.kwarg)


def real_parameters(function):
    found = list(inspect.signature(function).parameters.values())
    plain = [(p.name, p.kind is p.KEYWORD_ONLY, p.default is not p.empty)
             for p in found if p.kind is not p.VAR_KEYWORD]  # fmt: skip
    return plain, len(plain) < len(found)


def functions(tree, owner):
    """(function's node, the real thing) of a stub, methods included; of overloads the first."""
    seen = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node, getattr(owner, node.name))
        elif isinstance(node, ast.FunctionDef) and node.name not in seen:
            seen.add(node.name)
            real = inspect.getattr_static(owner, node.name)
            yield node, real.fget if isinstance(real, property) else real


@pytest.mark.parametrize("name", MODULES)
def test_parameters(name):
    with optional():
        module = importlib.import_module(f"rnnfast.{name}")
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    for node, real in functions(tree, module):
        assert parameters(node) == real_parameters(real), f"{name}: {node.name}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("_")])
def test_classes_have_their_public_methods(name):
    with optional():
        module = importlib.import_module(f"rnnfast.{name}")
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            stub = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            real = {n for n, f in vars(getattr(module, node.name)).items()
                    if inspect.isfunction(f) and not n.startswith("_")}  # fmt: skip
            assert real <= stub, (node.name, real - stub)


def test_everything_public_has_a_type():
    """A module without a stub is annotated itself or is only a name for others."""
    for name in rnnfast.__all__:
        value = getattr(rnnfast, name)
        module = getattr(value, "__module__", None) or value.__name__
        assert module.removeprefix("rnnfast.") in MODULES, name
    assert (PACKAGE / "py.typed").exists()
