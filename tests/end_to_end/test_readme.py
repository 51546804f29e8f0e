"""The README says what is true: its script runs, and it is short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> str:
    (script,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    return script


def test_the_script_has_fewer_than_25_lines(script):
    assert len(script.splitlines()) < 25


@pytest.mark.slow
def test_the_script_runs(script, tmp_path):
    rng = np.random.default_rng(0)
    joints = np.concatenate(
        [rng.uniform(20, 180, (8, 17, 2)), rng.integers(0, 3, (8, 17, 1))], axis=-1
    )
    crops = rng.integers(0, 256, (8, 256, 192, 3), np.uint8)
    np.savez(tmp_path / "people.npz", crops=crops, joints=joints)
    result = subprocess.run(
        [sys.executable, "-c", script.replace("epochs=10", "epochs=1")],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "pck" in result.stdout and (tmp_path / "regressor.keras").is_file()


def test_links_and_recipes_exist():
    readme = (REPOSITORY / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (REPOSITORY / target).exists(), target
    recipes = {path.name for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert recipes and all(name in readme for name in recipes)
