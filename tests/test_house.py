"""The rules of the house (CONTRIBUTING.md): who may import whom, and how large a module and a function may be."""

import ast
import configparser
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

from fada_jax.errors import EXTRAS

PACKAGES = ("fada_jax", "input_pipeline", "configs", "scripts")
# From top to bottom. A module imports those of lines below its own and, but for commands, of its own line.
LAYERS = (
    "scripts.[command]",
    "scripts",
    "[command]",
    "api",
    "loading",
    "configs",
    "reporting interop",
    "stages",
    "evaluation",
    "config",
    "input_pipeline",
    "methods",
    "training",
    "distributed cli config_arguments stored",
    "models",
    "preprocessing images earlier",
    "classes handovers documents folders files storage ranges errors progress endings peers as_command __init__",
)
COMMANDS = ("train", "evaluate", "predict", "convert_weights", "export", "__main__")
# Imports inside functions serve dependencies that not everybody has.
OPTIONAL = {"torch", "safetensors", "tensorflow", "wandb", "apache_beam", "matplotlib", "importlib"}
LIMIT, FUNCTION_LIMIT = 400, 60


def modules():
    """Source files by module name below ``fada_jax``."""
    files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(ROOT).with_suffix("").parts
                name = ".".join(parts[1:] if package == "fada_jax" else parts)
                files[name.removesuffix(".__init__")] = path
    return files


MODULES = modules()
# The package's own names are lazy.
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items() if name != "__init__"}


def imports(tree):
    """Our modules that a module names in any import, and whether that stands inside a function."""
    inside = {id(x) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for x in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fada_jax":
            base = node.module.removeprefix("fada_jax").removeprefix(".")
            for alias in node.names:
                name = ".".join(filter(None, (base, alias.name)))
                yield (name if name in MODULES else base or "__init__"), id(node) in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "fada_jax":
                    yield alias.name.removeprefix("fada_jax").removeprefix(".") or "__init__", id(node) in inside


def layer(module):
    """Number of a module's layer, 0 at the top."""
    package, _, rest = module.partition(".")
    if package == "scripts" and rest and "." not in rest and "[command]" not in rest:
        return 0 if MODULES[module].parent.name == "scripts" else 1
    name = "[command]" if module in COMMANDS else package or "__init__"
    return next(i for i, names in enumerate(LAYERS) if name in names.split())


def test_imports_run_downwards():
    wrong = [
        f"{module} -> {imported}"
        for module, tree in TREES.items()
        for imported, _ in imports(tree)
        if layer(imported) < layer(module) or (layer(imported) == layer(module) == 2)
    ]
    assert not wrong


def test_no_imports_run_in_circles():
    graph = {module: {imported for imported, _ in imports(tree)} - {module} for module, tree in TREES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_stand_at_the_top():
    wrong = [
        f"{module} -> {imported}"
        for module, tree in TREES.items()
        for imported, inside in imports(tree)
        if inside and not module.startswith("scripts.")
    ]
    assert not wrong


def third_party(tree):
    """Top-level names of what a module imports from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("tensorflow", ("input_pipeline", "interop.stablehlo")),
        ("tensorflow_datasets", ("input_pipeline",)),
        ("torch", ("interop.torch_files", "scripts")),
        ("ml_collections", ("config", "configs", "cli")),
    ],
)
def test_a_library_has_one_home(library, homes):
    users = [module for module, tree in TREES.items() if library in third_party(tree)]
    assert [module for module in users if not module.startswith(homes)] == []
    assert users


def requirements():
    """Requirements of setup.cfg by extra, the base install under ''."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {extra: [line.partition(";")[0] for line in lines.split("\n") if line] for extra, lines in extras.items()}


def test_lower_bounds_are_those_that_were_tried():
    rows = json.loads((ROOT / "docs" / "results" / "versions.json").read_text())["tried"]["rows"]
    oldest = {name: re.sub(r"(\.0)+$", "", version) for name, version, _ in rows}
    oldest["tensorflow"] = oldest["tensorflow-cpu"]
    bounds = {}
    for extra in ("", "train", "report", "input"):
        for name, bound in (line.split(">=") for line in requirements()[extra]):
            bounds[name.strip()] = re.sub(r"(\.0)+$", "", bound.strip())
    assert bounds == {name: oldest.get(name) for name in bounds} and bounds.keys() | {"safetensors"} == oldest.keys()


def test_the_extra_of_a_missing_library_brings_it():
    for extra, libraries in EXTRAS.items():
        brought = " ".join(requirements()[extra]).replace("-", "_")
        brought = brought.replace("scikit_learn", "sklearn").replace("scikit_image", "skimage")
        assert all(library in brought for library in libraries), extra
        assert not any(library in " ".join(requirements()[""]) for library in libraries)


def test_a_module_has_one_job():
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > LIMIT} == {}


def test_a_function_fits_on_a_screen():
    long = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LIMIT
    }
    assert long == {}


def test_the_ten_questions_have_answers():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Where is it?")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|") and "`" in line]
    assert len(rows) == 10
    for row in rows:
        for name in row.split("`")[1::2]:
            if name.endswith(".py"):
                assert Path(ROOT, name).is_file(), name


def test_text_is_utf8_whatever_the_locale():
    """A rule of ruff's preview, which would bring others if it were switched on for all."""
    places = [str(ROOT / package) for package in PACKAGES]
    arguments = ["-m", "ruff", "check", "--no-cache", "--preview", "--select=PLW1514", *places]
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
