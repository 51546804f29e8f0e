"""The house has floors: a module imports from its own and from lower ones."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rle_tf"

# The first entry that a module's name equals or is inside of counts.
FLOORS = {
    "rle_tf.errors": 0,
    "rle_tf.files": 0,
    "rle_tf.skeletons": 0,
    "rle_tf.skeleton_file": 0,
    "rle_tf.geometry": 0,
    "rle_tf.timing": 0,
    "rle_tf.data": 1,
    "rle_tf.models": 1,
    "rle_tf.flow": 1,
    "rle_tf.losses": 1,
    "rle_tf.metrics": 1,
    "rle_tf.config": 2,
    "rle_tf.config_data": 2,
    "rle_tf.config_file": 2,
    "rle_tf.distribution": 2,
    "rle_tf.estimator": 2,
    "rle_tf.optimization": 2,
    "rle_tf.training": 2,
    "rle_tf.run_folder": 2,
    "rle_tf.callbacks": 2,
    "rle_tf.evaluation": 2,
    "rle_tf.export": 2,
    "rle_tf.prediction": 2,
    "rle_tf.drawing": 2,
    "rle_tf.charts": 2,
    "rle_tf.calibration": 2,
    "rle_tf.comparison": 2,
    "rle_tf.benchmark": 2,
    "rle_tf.checkpoints": 2,
    "rle_tf.parity": 2,
    "rle_tf.cli": 3,
    "rle_tf.commands": 3,
    "rle_tf.console": 3,
    "rle_tf.server": 3,
    "rle_tf.__main__": 3,
    "rle_tf": 3,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module: str) -> int:
    if module == "rle_tf":
        return FLOORS["rle_tf"]
    for name, number in FLOORS.items():
        if name != "rle_tf" and f"{module}.".startswith(f"{name}."):
            return number
    raise AssertionError(f"{module} is on no floor: add it to FLOORS")


def imported(source: str, module: str, is_package: bool = False) -> set[str]:
    """The modules that a module's source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            inside = {f"{origin}.{alias.name}" for alias in node.names}
            # `from package import module` imports the module, not something of the package.
            modules = inside & MODULES.keys()
            names |= modules | ({origin} if inside - modules else set())
    return names


def upward(source: str, module: str, is_package: bool = False) -> set[str]:
    """The imports of a module of rle_tf that go up a floor."""
    ours = {n for n in imported(source, module, is_package) if f"{n}.".startswith("rle_tf.")}
    return {name for name in ours if floor(name) > floor(module)}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_goes_up(module):
    path = MODULES[module]
    assert not upward(path.read_text("utf-8"), module, path.name == "__init__.py")


def test_every_floor_is_of_a_module():
    assert FLOORS.keys() <= MODULES.keys()


@pytest.mark.parametrize(
    ("source", "module", "found"),
    [
        ("import rle_tf.training", "rle_tf.data.coco", {"rle_tf.training"}),
        ("from rle_tf import config, metrics", "rle_tf.losses", {"rle_tf.config"}),
        ("from rle_tf import __version__", "rle_tf.training", {"rle_tf"}),
        ("from rle_tf.metrics import oks", "rle_tf.geometry", {"rle_tf.metrics"}),
        ("from ..training import train", "rle_tf.models.resnet", {"rle_tf.training"}),
        ("from . import cli", "rle_tf.evaluation", {"rle_tf.cli"}),
        ("def f():\n    from rle_tf import flow", "rle_tf.errors", {"rle_tf.flow"}),
        ("from rle_tf import geometry\nimport rle_tf.flow", "rle_tf.losses", set()),
    ],
)
def test_an_upward_import_is_found(source, module, found):
    assert upward(source, module) == found


def test_one_module_imports_tensorflow_probability():
    users = {
        module
        for module, path in MODULES.items()
        for name in imported(path.read_text("utf-8"), module, path.name == "__init__.py")
        if name.split(".")[0] == "tensorflow_probability"
    }
    assert users == {"rle_tf.flow"}


@pytest.mark.parametrize("module", ["rle_tf", "rle_tf.cli"])
def test_help_waits_for_no_large_package(module):
    code = (
        f"import sys, {module}\n"
        "print(*{'tensorflow', 'keras', 'tensorflow_probability', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("value", [None, "0"])
def test_importing_turns_onednn_on_unless_told_otherwise(value):
    environment = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    if value:
        environment["TF_ENABLE_ONEDNN_OPTS"] = value
    code = "import rle_tf, os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == (value or "1")
