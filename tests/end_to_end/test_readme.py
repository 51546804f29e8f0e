"""The README says what is true: its script runs, and it is short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]


SCRIPT_2D, SCRIPT_3D = re.findall(
    r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S
)


@pytest.mark.parametrize("script", [SCRIPT_2D, SCRIPT_3D])
def test_a_script_has_fewer_than_25_lines(script):
    assert len(script.splitlines()) < 25


def run(script: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    rng = np.random.default_rng(0)
    joints = np.concatenate(
        [rng.uniform(20, 180, (8, 17, 2)), rng.integers(0, 3, (8, 17, 1))], axis=-1
    )
    crops = rng.integers(0, 256, (8, 256, 192, 3), np.uint8)
    np.savez(tmp_path / "people.npz", crops=crops, joints=joints)
    printed = run(SCRIPT_2D.replace("epochs=10", "epochs=1"), tmp_path)
    assert "pck" in printed and (tmp_path / "regressor.keras").is_file()


@pytest.mark.slow
def test_the_script_for_3d_runs(h36m_sample, mpii_sample, tmp_path):
    for sample in (h36m_sample, mpii_sample):
        (tmp_path / sample.name).symlink_to(sample)
    printed = run(
        re.sub(r"epochs=\d+, steps_per_epoch=\d+", "steps_per_epoch=2", SCRIPT_3D), tmp_path
    )
    assert re.search(r"[\d.]+ mm", printed)


def test_links_and_recipes_exist():
    readme = (REPOSITORY / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (REPOSITORY / target).exists(), target
    recipes = {path.name for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert recipes and all(name in readme for name in recipes)
