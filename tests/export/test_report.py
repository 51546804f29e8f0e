"""The report on exports, measured on a small run of rendered people."""

import json
import pkgutil
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.config import load_config
from rle_tf.errors import ModelError
from rle_tf.export.latency import Runner, measure_latency
from rle_tf.export.litert import calibration_crops, export_litert
from rle_tf.export.onnx import export_onnx
from rle_tf.export.openvino import export_openvino
from rle_tf.export.report import deployment_report, report_table
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.models.regressor import build_regressor
from rle_tf.run_folder import RunFolder

# Each report runs every format in processes of their own.
pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"


def write_run(folder: Path, recipe: str, regressor: keras.Model, overrides: list[str]) -> RunFolder:
    config = load_config(CONFIGS / f"{recipe}.yaml", overrides)
    folder.mkdir()
    config.save(folder / "config.yaml")
    run = RunFolder(folder)
    regressor.save(run.regressor)
    run.density.write_text(
        json.dumps({"spread": [0.2, 0.1, 0.3][: regressor.output["mu"].shape[-1]]})
    )
    return run


def build(skeleton, dims: int, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = keras.Input((64, 32, 3))
    x = keras.layers.Conv2D(12, 3, 2, "same", activation="relu")(image)
    x = keras.layers.DepthwiseConv2D(3, 2, "same", activation="relu")(x)
    x = keras.layers.Conv2D(24, 3, 2, "same", activation="relu")(x)
    regressor = build_regressor(keras.Model(image, x), skeleton, dims, (64, 32))
    for name, scale in (("mu_dense", 0.3), ("sigma_dense", 3.0)):
        kernel = regressor.get_layer(name).kernel
        kernel.assign(scale * keras.random.normal(kernel.shape, seed=seed))
    return regressor


def export(run: RunFolder, directory: Path) -> Path:
    config, regressor = run.load()
    return export_savedmodel(
        regressor, directory, skeleton=config.data.source.skeleton, spread=run.spread,
        mean=config.data.mean, std=config.data.std, box_margin=config.data.box_margin,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, the SavedModel of it and four files."""
    root = tmp_path_factory.mktemp("report")
    overrides = [f"data.source.root={root / 'people'}"]
    overrides += ["data.source.train_people=18", "data.source.val_people=9"]
    config = load_config(CONFIGS / "demo.yaml", overrides)
    run = write_run(root / "run", "demo", build(config.data.source.skeleton, 2), overrides)
    version = export(run, root / "models")
    calibration = calibration_crops(config.open_source("train"), config.input_format)
    files = [
        export_litert(version, version.with_name("1-float32.tflite")),
        export_litert(
            version, version.with_name("1-int8.tflite"), "int8", calibration, flip_test=True
        ),
        export_onnx(version, version.with_name("1.onnx")),
        export_openvino(version, version.with_name("1.xml")),
    ]
    return run, version, files


@pytest.fixture(scope="module")
def report(exported):
    run, version, files = exported
    steps = []
    report = deployment_report(run, *run.load(), version, files, on_step=steps.append)
    assert len(steps) == 6 + 2 and "latency at 1 thread" in steps
    return report


def test_formats_and_sizes(exported, report):
    run, version, files = exported
    assert report["people"] == 9 and report["run"] == str(run.path)
    found = [(entry["format"], entry["precision"]) for entry in report["formats"]]
    assert found == [
        ("Keras", "float32"), ("SavedModel", "float32"), ("LiteRT", "float32"), ("LiteRT", "int8"),
        ("ONNX", "float32"), ("OpenVINO", "float32"),
    ]  # fmt: skip
    paths = [run.regressor, version, *files]
    assert [entry["path"] for entry in report["formats"]] == [str(path) for path in paths]
    sizes = [entry["bytes"] for entry in report["formats"]]
    assert [sizes[i] for i in (0, 2, 3, 4)] == [paths[i].stat().st_size for i in (0, 2, 3, 4)]
    assert sizes[5] == sum(files[3].with_suffix(s).stat().st_size for s in (".xml", ".bin"))
    parts = ("saved_model.pb", "variables/variables.data-00000-of-00001")
    assert sizes[1] > sum((version / part).stat().st_size for part in parts)


def test_operators_are_those_of_litert(report):
    operators = [entry["operators"] for entry in report["formats"]]
    assert operators[0] is operators[1] is operators[4] is operators[5] is None
    assert operators[2]["CONV_2D"] == 2
    assert operators[3]["CONV_2D"] == 2 * 2  # in two signatures
    assert "QUANTIZE" in operators[3] and "QUANTIZE" not in operators[2]


def test_accuracy_and_deviation(report):
    keras_entry, saved, float32, int8, onnx, openvino = report["formats"]
    assert {"AP", "PCK@0.1", "error_px"} <= keras_entry["scores"].keys()
    assert keras_entry["deviation_px"] == {"mean": 0, "p95": 0, "max": 0}
    for same in (saved, float32, onnx, openvino):
        assert same["scores"]["error_px"] == pytest.approx(
            keras_entry["scores"]["error_px"], rel=1e-4
        )
        assert same["deviation_px"]["max"] < 1e-3 and same["deviation_sigma"]["p95"] < 1e-4
    deviation = int8["deviation_px"]
    assert 1e-3 < deviation["mean"] < deviation["p95"] < deviation["max"] < 4
    assert 1e-4 < int8["deviation_sigma"]["median"] < int8["deviation_sigma"]["p95"] < 0.5
    assert int8["scores"]["error_px"] != keras_entry["scores"]["error_px"]
    assert int8["deviation_mm"] is None


def test_with_flip_test_as_well(exported, report):
    run, version, files = exported
    both = deployment_report(run, *run.load(), version, files[1:3], flip_test=True)
    plain, flipped = both["formats"][:4], both["formats"][4:]
    assert [entry["flip_test"] for entry in both["formats"]] == [False] * 4 + [True] * 3
    assert [entry["format"] for entry in flipped] == ["Keras", "SavedModel", "LiteRT"]
    for entry, before in zip(plain, [report["formats"][i] for i in (0, 1, 3, 4)], strict=True):
        assert entry["scores"] == before["scores"]
    keras_entry, saved, int8 = flipped
    error = keras_entry["scores"]["error_px"]
    assert error != pytest.approx(plain[0]["scores"]["error_px"], rel=1e-3)
    assert saved["scores"]["error_px"] == pytest.approx(error, rel=1e-4)
    assert saved["deviation_px"]["max"] < 1e-3 and saved["deviation_sigma"]["p95"] < 1e-4
    assert 1e-3 < int8["deviation_px"]["mean"] < int8["deviation_px"]["max"] < 4
    _, rows = report_table(both)
    names = ["flip test:", "Keras", "SavedModel", "LiteRT int8"]
    assert [row[0] for row in rows[4:]] == names
    assert rows[5][-1] == "" and float(rows[6][-1]) > 0
    with pytest.raises(
        ModelError, match="1-float32.tflite: found the signatures serving_default; e"
    ):
        deployment_report(run, *run.load(), version, files[:1], flip_test=True)


def test_what_is_timed_with_flip_test_has_one(exported, monkeypatch):
    _, version, files = exported
    # It is for a process of its own.
    for kind in ("intra", "inter"):
        name = f"set_{kind}_op_parallelism_threads"
        monkeypatch.setattr(tf.config.threading, name, lambda threads: None)
    loaded = tf.saved_model.load(str(version))
    crops = np.random.default_rng(0).integers(0, 256, (1, 64, 32, 3), dtype=np.uint8)
    wanted = loaded.signatures["serving_default_flip_test"](image=tf.constant(crops))["mu"]
    for path in (version, files[1]):
        name = Runner.of(path, flip_test=True).runtime
        found = pkgutil.resolve_name(name)(str(path), 1, 1)()["mu"]
        atol = 1e-5 if path is version else 0.01
        np.testing.assert_allclose(found, wanted, atol=atol)
    plain = loaded.signatures["serving_default"](image=tf.constant(crops))["mu"]
    assert np.abs(plain - wanted).max() > 0.02


def test_latencies_are_there(report):
    assert report["formats"][0]["latency_ms"] is None
    for entry in report["formats"][1:]:
        assert entry["latency_ms"].keys() == {"1", "2"}
        assert 0 < min(entry["latency_ms"].values())


def test_report_is_json_and_a_table(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    header, rows = report_table(report)
    assert {len(row) for row in rows} == {len(header)}
    assert header[:4] == ["format", "MB", "AP", "PCK@0.1"] and header[-1] == "ms, 2"
    names = ["Keras", "SavedModel", "LiteRT float32", "LiteRT int8", "ONNX", "OpenVINO"]
    assert [row[0] for row in rows] == names
    # Keras is what the others deviate from.
    assert rows[0][4:] == [""] * (len(header) - 4)
    assert rows[3][4].split(", ")[0] == f"{report['formats'][3]['deviation_px']['mean']:.2f}"


def test_another_model_deviates_and_people_can_be_fewer(exported, tmp_path):
    run, _, _ = exported
    config, regressor = run.load()
    other = build(config.data.source.skeleton, 2, seed=5)
    shutil.copytree(run.path, tmp_path / "run")
    changed = RunFolder(tmp_path / "run")
    other.save(changed.regressor)
    version = export(changed, tmp_path / "models")
    report = deployment_report(run, config, regressor, version, people=4)
    assert report["people"] == 4
    saved = report["formats"][1]
    assert saved["deviation_px"]["mean"] > 1 and saved["deviation_sigma"]["median"] > 0.1


def test_depths_have_millimetres(tmp_path):
    overrides = [f"data.source.root={tmp_path / 'people'}", "data.image_size=[64, 32]"]
    overrides += ["data.source.train_people=18", "data.source.val_people=6"]
    config = load_config(CONFIGS / "synthetic3d.yaml", overrides)
    regressor = build(config.data.source.skeleton, 3)
    run = write_run(tmp_path / "run", "synthetic3d", regressor, overrides)
    version = export(run, tmp_path / "models")
    calibration = calibration_crops(config.open_source("train"), config.input_format)
    int8 = export_litert(version, version.with_name("1-int8.tflite"), "int8", calibration)
    report = deployment_report(run, *run.load(), version, [int8])
    deviation = report["formats"][2]["deviation_mm"]
    assert 0.1 < deviation["mean"] < deviation["max"] < 500
    # Without the root's, which is 1e-9 by definition.
    assert report["formats"][2]["deviation_sigma"]["p95"] < 1
    header, rows = report_table(report)
    assert "mm" in header and "MPJPE" in header
    assert {len(row) for row in rows} == {len(header)}


def test_what_cannot_be_reported_on(exported, tmp_path):
    run, version, files = exported
    loaded = run.load()
    with pytest.raises(ModelError, match=r"none\.tflite: no such file; expected a .tflite,"):
        deployment_report(run, *loaded, version, [tmp_path / "none.tflite"])
    shutil.copy(files[0], tmp_path / "alone.tflite")
    with pytest.raises(
        ModelError, match=r"alone\.json: no such file; expected what `export_litert"
    ):
        deployment_report(run, *loaded, version, [tmp_path / "alone.tflite"])
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.pt: found the suffix '\.pt'; expected"):
        deployment_report(run, *loaded, version, [tmp_path / "model.pt"])
    with pytest.raises(ModelError, match="found no such folder; expected an exported model"):
        deployment_report(run, *loaded, tmp_path / "nothing")
    lifting = load_config(CONFIGS / "h36m_lifting_rle.yaml")
    with pytest.raises(ModelError, match="a lifter, which takes keypoints; expected a model of im"):
        deployment_report(run, lifting, loaded[1], version)


def test_a_model_that_cannot_be_run_is_named(tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.tflite: cannot be run; .*(.|\n)*ValueError"):
        measure_latency([Runner.of(tmp_path / "broken.tflite")], threads=1)


def test_latency_of_each_model_in_turn(exported):
    _, version, files = exported
    found = measure_latency(
        list(map(Runner.of, [version, *files[:2]])), threads=1, rounds=2, runs=3
    )
    assert len(found) == 3
    for latency in found:
        seconds = latency.times.seconds
        assert len(seconds) == 2 and min(seconds) > 0
        assert min(seconds) <= latency.median_ms / 1000 <= max(seconds)
        assert 10 < latency.peak_mib < 10_000
