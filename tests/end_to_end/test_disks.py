"""A disk that fills up, and one that cannot be written: a message, and nothing saved is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rle_tf.data.synthetic import SyntheticSource
from rle_tf.run_folder import RunFolder

RECIPE = """\
name: disks
data:
  source:
    {{kind: synthetic, root: {root}, train_people: 60, val_people: 12, rendered_size: [80, 80]}}
  image_size: [64, 32]
model: {{backbone: resnet18, output_layer: layer1_0_out}}
loss: {{kind: rle, flow_layers: 2, flow_hidden: 8}}
train: {{batch_size: 12, epochs: 3, drawn_people: 0, keep_checkpoints: 3}}
"""
# In a mount namespace of its own: a disk of some size at $disk with what is in $before, after the
# command copied to $after.
ON_A_DISK = """\
mount -t tmpfs -o size="$size" tmpfs "$disk" && cp -a "$before/." "$disk" || exit 99
mount -o "remount,$mode" "$disk" || exit 99
"$@"; status=$?
cp -a "$disk/." "$after"
exit $status
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("disks")
    for split in ("train", "val"):
        SyntheticSource(
            root / "people", split, train_people=60, val_people=12, rendered_size=(80, 80)
        )
    path = root / "recipe.yaml"
    path.write_text(RECIPE.format(root=root / "people"))
    return path


@pytest.fixture
def on_a_disk(tmp_path):
    """Runs the command line with a disk of some size at tmp_path/disk."""
    for name in ("disk", "before", "after"):
        (tmp_path / name).mkdir()
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("this system lets no user make a mount namespace")

    def run(size: str, mode: str, *arguments: str) -> subprocess.CompletedProcess:
        folders = {name: str(tmp_path / name) for name in ("disk", "before", "after")}
        script = "".join(f"{key}={value}\n" for key, value in folders.items())
        script += f"size={size}\nmode={mode}\n{ON_A_DISK}"
        command = [sys.executable, "-m", "rle_tf", *arguments]
        result = subprocess.run(
            [*namespace, "sh", "-c", script, "sh", *command], capture_output=True, text=True
        )
        assert result.returncode != 99, result.stderr
        return result

    return run


@pytest.mark.slow
def test_a_disk_that_fills_up(recipe, on_a_disk, tmp_path):
    out = tmp_path / "disk/run"
    # Room for the first checkpoint, of 1.2 MB, and not for the second.
    result = on_a_disk("2400k", "rw", "train", str(recipe), "--out", str(out))
    assert result.returncode == 1
    last = " ".join(result.stderr[result.stderr.rindex("error:") :].split())
    assert "step_00000010.weights.h5: cannot be written: No space left on device" in last
    assert "are needed; the checkpoint of step 5 is good" in last
    assert "Traceback" not in result.stderr

    kept = RunFolder(tmp_path / "after/run")
    assert kept.checkpoints.steps() == [5]
    assert not list(kept.path.rglob("unfinished*"))
    kept.load()
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--resume", "--out"]
    subprocess.run([*command, str(kept.path)], check=True, capture_output=True)
    assert kept.checkpoints.steps() == [5, 10, 15]


@pytest.mark.slow
def test_a_disk_that_cannot_be_written(recipe, on_a_disk, tmp_path):
    out, started = tmp_path / "disk/run", tmp_path / "before/run"
    result = on_a_disk("9m", "ro", "train", str(recipe), "--out", str(out))
    assert result.returncode == 1
    assert f"error: {out}: Read-only file system" in " ".join(result.stderr.split())

    epoch = ["train", str(recipe), "--set", "train.epochs=1", "--out", str(started)]
    subprocess.run([sys.executable, "-m", "rle_tf", *epoch], check=True, capture_output=True)
    result = on_a_disk("9m", "ro", "train", str(recipe), "--out", str(out), "--resume",
                       "--set", "train.epochs=1")  # fmt: skip
    assert result.returncode == 1
    assert f"error: {out}/config.yaml: Read-only file system" in " ".join(result.stderr.split())
    for file in started.rglob("*"):
        if file.is_file():
            assert (tmp_path / "after/run" / file.relative_to(started)).read_bytes() == (
                file.read_bytes()
            )
