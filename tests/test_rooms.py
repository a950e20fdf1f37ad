"""The structure of the package: which modules import which, and the cost of imports.

import-linter holds the layers in scripts/test.sh (contracts in pyproject.toml); here is what it does not see.
"""

import ast
import importlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = sorted((ROOT / "lowshot").rglob("*.py"))
ROOMS = sorted(path.parent for path in (ROOT / "lowshot").glob("*/__init__.py"))
STAGES = sorted(ROOT.glob("*.py"))
HEAVY = ("torch", "faiss", "matplotlib", "pandas", "scipy", "sklearn", "numba", "kornia", "timm", "lightning_fabric")


def imported_by_string(source: str) -> list[str]:
    """Return modules of the package named in strings (docstrings excluded), and calls that import by string."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented)
                  and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found += re.findall(r"^lowshot\.[\w.]*", node.value)
        if isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func)):
            found.append(ast.unparse(node))
    return found


def modules_imported(source: str) -> set[str]:
    """Return the top-level names of all imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    absolute = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return plain | {module.split(".")[0] for module in absolute}


def test_what_counts_as_an_import_by_string():
    assert imported_by_string('"""lowshot.gan"""\nx = 1') == []
    assert imported_by_string('f("lowshot.gan.model:load")') == ["lowshot.gan.model"]
    assert imported_by_string('f"lowshot.{room}.model"') == ["lowshot."]
    assert imported_by_string("importlib.import_module(name)") == ["importlib.import_module(name)"]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_imported_by_string(path):
    """The only exception is user code named in a command."""
    own = ["importlib.import_module(module)"] if path.name == "choices.py" else []
    assert imported_by_string(path.read_text(encoding="utf-8")) == own


def lazy_imports(source: str) -> list[str]:
    """Return imports from the package or a room, whose lazy names would hide an import of a higher room."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                alias.name for alias in node.names if (ROOT / alias.name.replace(".", "/") / "__init__.py").exists()
            ]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lowshot":
            folder = ROOT / node.module.replace(".", "/")
            modules = {
                path.stem for path in folder.glob("*") if path.suffix == ".py" or (path / "__init__.py").exists()
            }
            modules -= {"__init__"} | {room.name for room in ROOMS if folder == ROOT / "lowshot"}
            found += [
                f"{node.module}.{alias.name}" for alias in node.names if folder.is_dir() and alias.name not in modules
            ]
    return found


def test_what_counts_as_a_lazy_import():
    assert lazy_imports("import numpy\nfrom lowshot.gan import model\nfrom lowshot.gan.model import Gan") == []
    assert lazy_imports("from lowshot.data.datasets import glyphs") == []
    assert lazy_imports("import lowshot") == ["lowshot"]
    assert lazy_imports("import lowshot.gan") == ["lowshot.gan"]
    assert lazy_imports("from lowshot import gan, embed") == ["lowshot.gan", "lowshot.embed"]
    assert lazy_imports("def f():\n    from lowshot.gan import load_gan") == ["lowshot.gan.load_gan"]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_import_from_modules(path):
    assert lazy_imports(path.read_text(encoding="utf-8")) == []


def test_scripts_import_the_package_and_no_other_script():
    names = {path.stem for path in STAGES}
    for path in STAGES:
        assert not modules_imported(path.read_text(encoding="utf-8")) & names, path.name
    for path in PACKAGE:
        assert not modules_imported(path.read_text(encoding="utf-8")) & names, path


def test_at_most_three_modules_are_outside_the_rooms():
    assert len(list((ROOT / "lowshot").glob("*.py"))) <= 3


@pytest.mark.parametrize("stub", sorted((ROOT / "lowshot").rglob("*.pyi")), ids=lambda path: path.parent.name)
def test_lazy_names_exist(stub):
    """The names of a room come from its own modules, so that stubs cannot hide an import of a higher room."""
    package = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    for node in ast.parse(stub.read_text(encoding="utf-8")).body[1:]:
        if ast.unparse(node) == "__version__: str":
            continue
        assert isinstance(node, ast.ImportFrom) and node.level == 1, ast.unparse(node)
        for alias in node.names:
            assert alias.asname == alias.name  # marks a public name for type checkers
            assert getattr(package, alias.name) is not None


@pytest.mark.slow
def test_the_installed_package_is_complete(tmp_path):
    """It includes stubs, templates and lists, and reads nothing from the checkout."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", ROOT]
    subprocess.run(install, check=True, cwd=tmp_path)
    files = [path for path in (ROOT / "lowshot").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert [path for path in files if not (tmp_path / "site" / path.relative_to(ROOT)).is_file()] == []
    code = "import lowshot\nfor name in lowshot.__all__: getattr(lowshot, name)\nprint(lowshot.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.strip() == str(tmp_path / "site" / "lowshot" / "__init__.py"), done.stderr


def test_importing_is_cheap():
    """Importing the package, the settings or the stages does not import heavy libraries."""
    settings = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE if path.stem == "settings"]
    assert len(settings) >= 8
    names = ["lowshot", *settings, *(path.stem for path in STAGES)]
    code = f"import sys\nfor name in {names}: __import__(name)\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_bare_import_loads_nothing_else():
    code = "import sys, lowshot\nprint([m for m in ('numpy', 'h5py', 'yaml', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_imports_no_heavy_library():
    """Help resolves the annotations of settings, which must not import heavy modules either."""
    code = (
        "import contextlib, io, runpy, sys\n"
        "script, sys.argv = sys.argv[1], sys.argv[1:] + ['--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    runpy.run_path(script, run_name='__main__')\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    for path in STAGES:
        done = subprocess.run([sys.executable, "-c", code, path.name], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.strip() == "[]", (path.name, done.stdout, done.stderr)


def edited_recipes(source: str) -> list[str]:
    """Return statements that change the config or the inputs of an existing recipe."""

    def of_a_recipe(node):
        parts = [one for one in ast.walk(node) if isinstance(one, ast.Subscript)]
        return any(ast.unparse(one.slice) in ("'config'", "'inputs'") for one in parts)

    found = []
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, (ast.Delete, ast.Assign)) else []
        targets = [node.target] if isinstance(node, ast.AugAssign) else targets
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value] if node.func.attr in ("pop", "update", "setdefault", "clear") else []
        if any(of_a_recipe(one) for one in targets):
            found.append(ast.unparse(node))
    return found


def test_what_counts_as_an_edited_recipe():
    assert edited_recipes("made['config']['lr'] = 1") and edited_recipes("del made['config']['lr']")
    assert edited_recipes("made['inputs'] |= more") and edited_recipes("made['config'].pop('lr')")
    assert edited_recipes("config = made['config']['lr']\nfiles.pop('x')\ndel rows[0]") == []


@pytest.mark.parametrize("path", [*PACKAGE, *STAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_recipes_are_made_once(path):
    """Recipes contain only settings that are read, so nothing is removed from a recipe or changed after it was made."""
    assert edited_recipes(path.read_text(encoding="utf-8")) == []
