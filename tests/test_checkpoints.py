"""Published weights, against the authors' regressor.

Its weights are drawn by a rule from their names, for every key but `*.num_batches_tracked` and
`flow*.mask`: z = default_rng(crc32(key)).standard_normal(shape), then by the first match
`*running_var` 1 + 0.1|z|; `*running_mean` 0.1 z; 1-D `*.weight` 0.5 + 0.05 z; other 1-D 0.1 z;
4-D z sqrt(2 / fan_in); 2-D z sqrt(1 / fan_in), those of `fc_sigma` times 0.1.
"""

import json
import warnings
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

from rle_tf.checkpoints import import_checkpoint, load_state_dict, recognise, state_dict
from rle_tf.config import load_config
from rle_tf.errors import ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.export.torch import export_torch
from rle_tf.flow import RealNVP
from rle_tf.losses import L1Loss, RLELoss
from rle_tf.models.regressor import build_backbone, build_regressor
from rle_tf.models.weights import load_weights, read_state_dict
from rle_tf.parity import compare
from rle_tf.prediction import load
from rle_tf.run_folder import RunFolder
from rle_tf.skeletons import COCO17, H36M18, LSP14
from rle_tf.training import build_estimator

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {
    2: CONFIGS / "coco_resnet50_rle.yaml",
    3: CONFIGS / "h36m_mpii_resnet50_rle.yaml",
}
CONFIG = load_config(RECIPES[2])
SMALL = (64, 64)


def draw(key: str, shape: list[int]) -> np.ndarray:
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif key.endswith("running_mean"):
        z = 0.1 * z
    elif len(shape) == 1:
        z = 0.5 + 0.05 * z if key.endswith(".weight") else 0.1 * z
    elif len(shape) == 4:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    else:
        z = z * np.sqrt(1 / shape[1]) * (0.1 if key.startswith("fc_sigma") else 1)
    return z.astype("float32")


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {
        key: draw(key, shape)
        for key, shape in shapes.items()
        if not key.endswith(("num_batches_tracked", ".mask"))
    }


def authors_keys(name: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / f"checkpoint_keys_{name}.json").read_text())


@pytest.fixture(scope="module")
def authors() -> dict[str, np.ndarray]:
    """The smallest of their models."""
    return drawn(authors_keys("2d_resnet18"))


def random_estimator(backbone: str, skeleton=COCO17, dims: int = 2, **options) -> PoseEstimator:
    keras.utils.set_random_seed(0)
    regressor = build_regressor(backbone, skeleton, dims, SMALL, **options)
    flow_2d = RealNVP(2, hidden=8) if dims == 3 else None
    return PoseEstimator(regressor, RLELoss(RealNVP(dims, hidden=8), flow_2d=flow_2d))


def outputs(estimator: PoseEstimator) -> dict[str, np.ndarray]:
    image = np.random.default_rng(3).uniform(-1, 1, (2, *SMALL, 3)).astype("float32")
    return {key: value.numpy() for key, value in estimator.regressor(image).items()}


# ---- the authors' files


@pytest.mark.parametrize(
    "name",
    ["2d_resnet18", pytest.param("2d_resnet50", marks=pytest.mark.slow), "3d_resnet50"],
)
def test_the_authors_outputs_are_reproduced(name, golden):
    expected = golden(f"regressor_{name}")
    regressor = load_state_dict(drawn(authors_keys(name))).regressor
    image = np.random.default_rng(int(expected["input_seed"])).uniform(
        -0.5, 0.55, (2, *map(int, expected["image_hw"]), 3)
    )
    pool = regressor.get_layer("pool").output
    found = keras.Model(regressor.input, {**regressor.output, "pool": pool})(
        image.astype("float32")
    )
    sigma = np.exp(found["log_sigma"])
    # A deviation that is the same everywhere would pass a loose tolerance.
    assert expected["pred_jts"].std() > 0.1 and expected["sigma"].std() > 0.01
    for value, key in (
        (found["pool"], "feature_mean"),
        (found["mu"], "pred_jts"),
        (sigma, "sigma"),
        (1 - sigma.mean(axis=-1, keepdims=True), "score"),
    ):
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(("name", "flow"), [("2d_resnet18", "flow"), ("3d_resnet50", "flow3d")])
def test_the_authors_flow_is_reproduced(name, flow, golden):
    expected = golden("flow2d" if flow == "flow" else "flow3d")
    state = drawn(authors_keys(name))
    state |= {
        key.replace("weight/", f"{flow}.", 1): value
        for key, value in expected.items()
        if key.startswith("weight/")
    }
    loaded = load_state_dict(state).loss.flow
    np.testing.assert_allclose(
        loaded.log_prob(expected["residual"]), expected["log_prob"], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    "name", ["2d_resnet18", pytest.param("3d_resnet50", marks=pytest.mark.slow)]
)
def test_the_way_back_is_exact(name):
    keys = authors_keys(name)
    state = drawn(keys)
    back = state_dict(load_state_dict(state))
    assert {key: list(value.shape) for key, value in back.items()} == keys
    for key, value in state.items():
        assert back[key].dtype == np.float32
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    again = state_dict(load_state_dict(back))  # with masks and counters, as their files are
    for key, value in back.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


@pytest.mark.parametrize(
    ("backbone", "dims"),
    [
        ("resnet34", 2),
        pytest.param("resnet34", 3, marks=pytest.mark.slow),
        pytest.param("resnet101", 3, marks=pytest.mark.slow),
        pytest.param("resnet152", 2, marks=pytest.mark.slow),
    ],
)
def test_other_depths_follow_the_same_rule(backbone, dims):
    skeleton = {2: LSP14, 3: H36M18}[dims]
    shapes = {
        key: value.shape
        for key, value in state_dict(random_estimator(backbone, skeleton, dims)).items()
    }
    state = drawn(shapes)
    estimator = load_state_dict(state, skeleton=skeleton, image_size=SMALL)
    assert recognise(state).backbone == backbone
    assert estimator.regressor.output["mu"].shape == (None, len(skeleton.joints), dims)
    parity = compare(state, estimator, "authors")
    assert max(parity.mu, parity.sigma) < 1e-5 and parity.log_prob < 1e-4
    back = state_dict(estimator)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_parity_sees_no_number(authors):
    estimator = load_state_dict(authors, image_size=SMALL)
    broken = authors | {"preact.bn1.running_var": -authors["preact.bn1.running_var"]}
    with np.errstate(invalid="ignore"):
        assert np.isnan(compare(broken, estimator, "authors").mu)
    broken = authors | {"flow.s.5.4.bias": np.full(2, np.nan)}
    assert np.isnan(compare(broken, estimator, "authors").log_prob)


def test_parity_sees_a_weight_that_is_off(authors):
    estimator = load_state_dict(authors, image_size=SMALL)
    good = compare(authors, estimator, "authors")
    for key, value in (("preact.layer3.1.conv2.weight", "mu"), ("flow.t.4.2.bias", "log_prob")):
        bad = compare(authors | {key: authors[key] * 1.1}, estimator, "authors")
        assert getattr(bad, value) > 10 * getattr(good, value)


# ---- mmpose's


def mmpose(estimator: PoseEstimator, head: str = "head", loss: str = "loss_module"):
    """A regressor without feature norm as mmpose would save it."""
    state, regressor = {}, estimator.regressor
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
    names |= {"kernel": "weight", "moving_variance": "running_var"}
    for layer in regressor.get_layer("backbone").layers:
        for variable in layer.weights:
            value = variable.numpy()
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                value = value.transpose(2, 3, 0, 1)
            elif value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            key = f"backbone.{layer.name.replace('_', '.')}.{names[variable.name]}"
            state[key] = value
            if key.endswith("running_var"):
                state[key.replace("running_var", "num_batches_tracked")] = np.int64(9)
    mu, sigma = (regressor.get_layer(name).get_weights() for name in ("mu_dense", "sigma_dense"))
    rows = [(k, part) for k in range(17) for part in (mu, mu, sigma, sigma)]
    for index, part in ((0, "weight"), (1, "bias")):
        state[f"{head}.fc.{part}"] = np.stack(
            [of[index][..., 2 * k + row % 2] for row, (k, of) in enumerate(rows)]
        )
    state[f"{head}.fc.bias"] = state[f"{head}.fc.bias"] + np.tile([0.5, 0.5, 0, 0], 17)
    prefix, flow = f"{head}.{loss}.flow_model", estimator.loss.flow
    state |= {f"{prefix}.loc": np.zeros(2), f"{prefix}.cov": np.eye(2)}
    state[f"{prefix}.mask"] = np.array([[0, 1], [1, 0]] * 3, "float32")
    for kind, nets in (("s", flow.scale_nets), ("t", flow.shift_nets)):
        for i, net in enumerate(nets):
            for place, dense in zip((0, 2, 4), net.dense, strict=True):
                state[f"{prefix}.{kind}.{i}.{place}.weight"] = dense.kernel.numpy().T
                state[f"{prefix}.{kind}.{i}.{place}.bias"] = dense.bias.numpy()
    return state


def wilder(estimator: PoseEstimator) -> PoseEstimator:
    """With heads that say something, and normalisation that does."""
    rng = np.random.default_rng(1)
    for layer in estimator.regressor.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(rng.uniform(0.4, 0.6, variable.shape))
    for name in ("mu_dense", "sigma_dense"):
        layer = estimator.regressor.get_layer(name)
        layer.kernel.assign(0.05 * rng.normal(size=layer.kernel.shape))
        layer.bias.assign(0.1 * rng.normal(size=layer.bias.shape))
    return estimator


@pytest.mark.parametrize(
    ("backbone", "head", "loss"),
    [
        ("resnet18", "head", "loss_module"),
        pytest.param("resnet50", "keypoint_head", "loss", marks=pytest.mark.slow),
        ("mobilenet_v2_torch", "keypoint_head", "loss_module"),
    ],
)
def test_mmposes_regressor_gives_the_same_pixels(backbone, head, loss):
    known = wilder(random_estimator(backbone, feature_norm=False))
    state = mmpose(known, head, loss)
    loaded = load_state_dict(state, image_size=SMALL)
    found, expected = outputs(loaded), outputs(known)
    assert expected["mu"].std() > 0.05
    np.testing.assert_allclose(found["mu"] * 64, expected["mu"] * 64, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["log_sigma"], expected["log_sigma"], atol=1e-5)
    residual = np.random.default_rng(2).normal(size=(50, 2)).astype("float32")
    np.testing.assert_array_equal(
        loaded.loss.flow.log_prob(residual), known.loss.flow.log_prob(residual)
    )
    parity = compare(state, loaded, "mmpose")
    assert max(parity.mu, parity.sigma) < 1e-5 and parity.log_prob < 1e-4


@pytest.mark.slow
def test_mmposes_crops_are_its_own(tmp_path):
    path = tmp_path / "deeppose_res18_coco_64x32_rle-2ea9bb4a_20220616.npz"
    np.savez(path, **mmpose(random_estimator("resnet18", feature_norm=False)))
    # Not the numbers of another kind in such a name.
    config, published, _ = import_checkpoint(path, tmp_path / "wide", RECIPES)
    assert config.data.image_size == (256, 192)
    path = path.rename(tmp_path / "deeppose_res18_coco_128x096_rle-2ea9bb4a_20220616.npz")
    config, published, _ = import_checkpoint(path, tmp_path / "a", RECIPES)
    assert published.layout == "mmpose" and published.skeleton is COCO17
    assert config.data.image_size == (128, 96)
    assert config.data.mean == (0.485, 0.456, 0.406) and config.data.std == (0.229, 0.224, 0.225)
    assert not config.model.feature_norm and not config.data.augmentation.keep_outside
    assert config.loss.convention == "mmpose"
    overrides = ["data.image_size=[96, 64]", "data.mean=[0.5, 0.5, 0.5]", "train.epochs=3"]
    overrides += ["train.drop_epochs=[]"]
    config, _, _ = import_checkpoint(path, tmp_path / "b", RECIPES, overrides=overrides)
    assert config.data.image_size == (96, 64) and config.data.mean == (0.5,) * 3
    assert config.data.std == (0.229, 0.224, 0.225) and config.train.epochs == 3


@pytest.mark.slow
def test_crops_are_the_files_whatever_the_recipe_has(tmp_path):
    state = state_dict(random_estimator("resnet18", LSP14))
    np.savez(tmp_path / "people.npz", **state)
    recipe = CONFIGS / "lsp_mobilenet_rle.yaml"
    config, published, _ = import_checkpoint(
        tmp_path / "people.npz",
        tmp_path / "out",
        RECIPES,
        recipe,
        ["model.backbone=resnet18", "data.box_margin=1.5"],
    )
    assert published.skeleton is LSP14
    assert (config.data.mean, config.data.std) == ((0.406, 0.457, 0.480), (1.0, 1.0, 1.0))
    assert config.data.box_margin == 1.5 and config.data.image_size == (128, 128)
    assert config.train == load_config(recipe).train.model_copy(
        update={"start": str(tmp_path / "out")}
    )


@pytest.mark.slow
def test_what_was_exported_comes_back_as_it_was(tmp_path):
    pytest.importorskip("torch")
    estimator = random_estimator("resnet18", H36M18, 3)
    config = load_config(
        RECIPES[3],
        ["data.image_size=[64, 64]", "data.mean=[0.5, 0.5, 0.5]", "model.backbone=resnet18"],
    )
    path = export_torch(estimator, config, tmp_path / "1.pth")
    back, _, _ = import_checkpoint(path, tmp_path / "out", RECIPES)
    assert back.data.image_size == SMALL and back.data.mean == (0.5,) * 3
    assert back.data.std == config.data.std and not back.model.root_sigma
    _, regressor = RunFolder(tmp_path / "out").load()
    image = np.random.default_rng(0).uniform(-1, 1, (2, *SMALL, 3)).astype("float32")
    for key, value in estimator.regressor(image).items():
        np.testing.assert_allclose(regressor(image)[key], value, atol=1e-6)


# ---- into a folder


def test_a_file_becomes_what_a_training_leaves(authors, tmp_path):
    path, out = tmp_path / "theirs.npz", tmp_path / "models/theirs"
    np.savez(path, **authors)
    overrides = ["data.image_size=[64, 64]", "train.batch_size=2"]
    config, _, parity = import_checkpoint(path, out, RECIPES, overrides=overrides)
    assert (config.data.mean, config.data.std) == ((0.406, 0.457, 0.480), (1.0, 1.0, 1.0))
    report = json.loads((out / "parity.json").read_text())
    assert report["layout"] == "authors" and report["backbone"] == "resnet18"
    assert report["tensors"] == len(authors) and report["mu"] == parity.mu < 1e-5

    folder = RunFolder(out)
    config, regressor = folder.load()
    expected = load_state_dict(authors, image_size=SMALL)
    image = np.random.default_rng(0).uniform(-1, 1, (2, *SMALL, 3)).astype("float32")
    for key, value in expected.regressor(image).items():
        np.testing.assert_allclose(regressor(image)[key], value, atol=1e-6)
    back = state_dict(PoseEstimator(regressor, folder.load_loss(config, 17, 2)))
    for key, value in authors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert (folder.spread > 0).all()

    # To predict, and to go on from.
    poses = load(out)(np.zeros((80, 60, 3), np.uint8), np.array([[5.0, 5, 50, 70]]))
    assert poses.keypoints.shape == (1, 17, 2)
    tuned = load_config(out / "config.yaml")
    assert tuned.train.start == str(out.resolve())
    assert (tuned.train.epochs, tuned.train.learning_rate) == (20, 1e-4)  # not from nothing

    class People:
        skeleton, dims = COCO17, 2

    estimator = build_estimator(tuned, People, steps_per_epoch=100)
    folder.copy_weights(estimator)
    for key, value in state_dict(estimator).items():
        if key in authors:
            np.testing.assert_array_equal(value, authors[key])

    with pytest.raises(ModelError, match="has a model already; expected a new folder"):
        import_checkpoint(path, out, RECIPES)


@pytest.mark.slow
def test_one_of_3d(tmp_path):
    state = state_dict(random_estimator("resnet18", H36M18, 3, root_sigma=True))
    path = tmp_path / "h36m.safetensors"
    safetensors.numpy.save_file(state, path)
    config, published, _ = import_checkpoint(
        path, tmp_path / "out", RECIPES, overrides=["data.image_size=[64, 64]"]
    )
    assert published.dims == 3 and config.model.root_sigma
    _, regressor = RunFolder(tmp_path / "out").load()
    assert regressor.output["mu"].shape == (None, 18, 3)


# ---- files


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_half_precision_and_a_wrapper(kind, authors, tmp_path):
    path = tmp_path / f"half.{kind}"
    half = {f"module.{key}": value.astype("float16") for key, value in authors.items()}
    if kind == "pth":
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(value) for key, value in half.items()}, path)
    elif kind == "npz":
        np.savez(path, **half)
    else:
        safetensors.numpy.save_file(half, path)
    back = state_dict(load_state_dict(read_state_dict(path)))
    for key, value in authors.items():
        assert back[key].dtype == np.float32
        np.testing.assert_array_equal(back[key], value.astype("float16").astype("float32"))


class Foreign:
    """Whose unpickling would run code."""


def test_a_file_that_wants_to_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Foreign()}, path)
    with pytest.raises(ModelError, match=r"foreign.pth: holds a .*Foreign, and to load that could"):
        read_state_dict(path)
    # What trainings note beside the weights is no code.
    notes = {"epoch": 3, "sigmas": np.arange(3.0), "names": ["a"], "config": "model = dict()"}
    torch.save({"state_dict": {"a": torch.ones(1).bfloat16()}, "meta": notes}, path)
    np.testing.assert_array_equal(read_state_dict(path)["a"], [1.0])
    path.write_bytes(b"?")
    with pytest.raises(ModelError, match="cannot be read as .pth: ValueError: ") as error:
        read_state_dict(path)
    assert "weights_only" not in str(error.value)  # PyTorch's advice is to let it run
    # By the names that older and newer versions of NumPy have for their values.
    for old in (b"numpy.core", b"numpy._core"):
        legacy = tmp_path / "legacy.pth"
        torch.save(
            {"state_dict": {"a": torch.ones(1)}, "best": np.float64(0.7), "s": np.arange(3.0)},
            legacy,
            _use_new_zipfile_serialization=False,
        )
        legacy.write_bytes(legacy.read_bytes().replace(b"numpy._core", old))
        np.testing.assert_array_equal(read_state_dict(legacy)["a"], [1.0])
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    with pytest.raises(ModelError, match="cannot be read as .pth: ValueError: ") as error:
        read_state_dict(path)
    assert "weights_only" not in str(error.value)
    torch.save({"net": {"a": torch.ones(1)}}, path)
    with pytest.raises(ModelError, match="found a dict of net; expected a state dict"):
        read_state_dict(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="found a list; expected a state dict"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_a_truncated_file(kind, authors, tmp_path):
    path = tmp_path / f"short.{kind}"
    if kind == "pth":
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(value) for key, value in authors.items()}, path)
    elif kind == "npz":
        np.savez(path, **authors)
    else:
        safetensors.numpy.save_file(authors, path)
    path.write_bytes(path.read_bytes()[: 10**6])
    with pytest.raises(ModelError, match=rf"short\.{kind} cannot be read as \.{kind}"):
        read_state_dict(path)


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(ModelError, match="model.onnx: expected a state dict, a file that ends in"):
        read_state_dict(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="absent.npz does not exist"):
        read_state_dict(tmp_path / "absent.npz")


# ---- state dicts that are none


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def with_value(key, change):
    return lambda state: state | {key: change(state.get(key))}


def heatmaps(state):
    backbone = {k.replace("preact", "backbone"): v for k, v in state.items() if "preact" in k}
    return backbone | {"head.final_layer.weight": np.zeros((17, 256, 1, 1))}


def classifier(state):
    backbone = {k.removeprefix("preact."): v for k, v in state.items() if "preact" in k}
    return backbone | {"fc.weight": np.zeros((1000, 512)), "fc.bias": np.zeros(1000)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("preact.layer2.1.bn1.running_var"), "preact.layer2.1.bn1.running_var: missing"),
        (without("fc_sigma.linear.bias"), "fc_sigma.linear.bias: missing"),
        (
            without("fc_coord.linear.weight"),
            "preact.conv1.weight: a backbone.* with fc_coord.linear.weight, head.fc.weight or",
        ),
        (without("flow.t.3.2.bias"), "flow.t.3.2.bias: missing; expected all of an RLE regressor"),
        (
            with_value("fc_sigma.linear.weight", lambda value: value[:-2]),
            r"fc_sigma.linear.weight: found shape \(32, 512\); expected \(34, 512\)",
        ),
        (
            with_value("preact.conv1.weight", lambda value: value * np.nan),
            "preact.conv1.weight: found 9408 values that are not finite",
        ),
        (
            with_value("preact.conv1.weight", lambda value: value.astype(str)),
            "preact.conv1.weight: found <U32; expected numbers",
        ),
        (
            with_value("flow.mask", lambda value: np.array([[1.0, 0], [0, 1]] * 3)),
            r"flow.mask: found \[\[1.0, 0.0\]",
        ),
        (
            with_value("preact.layer1.7.conv1.weight", lambda value: np.zeros((64, 64, 3, 3))),
            "expected a ResNet of 18, 34, 50, 101 or 152 layers",
        ),
        (
            with_value("preact.extra.weight", lambda value: np.zeros(3)),
            "preact.extra.weight and 0 more: not of a resnet18 with a flow of 6 couplings",
        ),
        (heatmaps, "head.final_layer.weight: a heatmap model; expected an RLE regressor"),
        (classifier, "conv1.weight: a backbone, or a network for classification.*model.weights"),
        (
            lambda state: (
                {
                    key.replace("preact", "backbone"): value
                    for key, value in state.items()
                    if "preact" in key
                }
                | {"head.fc.weight": np.zeros((1000, 512)), "head.fc.bias": np.zeros(1000)}
            ),
            "head.fc.weight: and no flow_model; a network for classification, or a regression",
        ),
        (
            with_value("preact.bn1.running_var", lambda value: -value),
            "preact.bn1.running_var: found -1.* expected variances, none below 0",
        ),
        (
            with_value("flow.s.0.0.weight", lambda value: np.float32(1)),
            r"flow.s.0.0.weight: found shape \(\); expected one of 2 axes",
        ),
        (
            with_value("fc_coord.linear.weight", lambda value: np.float32(1)),
            r"fc_coord.linear.weight: found shape \(\); expected one of 2 axes",
        ),
        (lambda state: {}, "found nothing, ...; expected fc_coord.linear.weight"),
    ],
)
def test_what_is_no_rle_regressor_is_named(change, message, authors):
    with pytest.raises(ModelError, match=message):
        load_state_dict(change(authors))


def test_entries_of_no_use_are_reported(authors, caplog):
    published = recognise(authors | {"ema.decay": np.zeros(1), "flow.mask": [[0, 1], [1, 0]] * 3})
    assert published.unknown == ("ema.decay",) and published.unused == ("flow.mask",)
    load_state_dict(authors | {"ema.decay": np.zeros(1)})
    assert "1 entries that are of no RLE regressor: ema.decay" in caplog.text


def test_mmposes_other_regressors_are_named():
    state = mmpose(random_estimator("resnet18", feature_norm=False))
    with pytest.raises(ModelError, match=r"head.fc.weight: found shape \(34, 512\); expected 4"):
        load_state_dict(state | {"head.fc.weight": np.zeros((34, 512))})
    key = "head.loss_module.flow_model.s.2.4.weight"
    with pytest.raises(ModelError, match=f"{key}: missing"):
        load_state_dict(without(key)(state))


def test_a_config_of_another_network(authors, tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, **authors)
    with pytest.raises(
        ModelError, match="holds a resnet18; expected a resnet50, as .* --set model"
    ):
        import_checkpoint(path, tmp_path / "out", RECIPES, RECIPES[2])
    with pytest.raises(ModelError, match="skeleton 'lsp14' has 14 joints; expected 17, as fc_"):
        load_state_dict(authors, skeleton=LSP14)
    with pytest.raises(ModelError, match="of 13 joints in 2D; expected 17 in 2D, 16 in 2D, 14 in"):
        load_state_dict(authors | {k: v[:26] for k, v in authors.items() if k.startswith("fc_")})
    assert not (tmp_path / "out").exists()


def test_what_their_code_does_not_have_is_not_exported(tmp_path):
    pytest.importorskip("torch")
    flow = RLELoss(RealNVP(2, hidden=8))
    for loss, options, found in (
        (flow, {"head": "soft_argmax"}, "soft_argmax"),
        (flow, {"feature_norm": False}, "feature_norm false"),
        (flow, {"output_layer": "layer3_1_out"}, "a part of one"),
        (L1Loss(), {}, "loss l1_loss"),
        (RLELoss(RealNVP(2, hidden=8, joints=17)), {}, "a flow for each joint"),
    ):
        regressor = build_regressor("resnet18", COCO17, 2, SMALL, **options)
        with pytest.raises(ModelError, match=f"{found}.*expected what the authors' code has"):
            export_torch(PoseEstimator(regressor, loss), CONFIG, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


# ---- as a backbone


def test_whole_models_give_their_backbone(authors, tmp_path):
    path = tmp_path / "model.npz"
    expected = authors["preact.layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    for prefix in ("preact.", "module.backbone.", "module."):
        values = {k.replace("preact.", prefix): v for k, v in authors.items()}
        np.savez(path, **values)
        backbone = build_backbone("resnet18", SMALL, weights=path)
        found = backbone.get_layer("layer2_0_conv1").kernel
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("deep", "wanted"),
    [
        ("resnet34", "resnet18"),
        pytest.param("resnet101", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_deeper_network_is_no_backbone_of_a_shallower(deep, wanted, tmp_path):
    estimator = random_estimator(deep)
    state = {k: v for k, v in state_dict(estimator).items() if k.startswith("preact.")}
    np.savez(tmp_path / "deep.npz", **state)
    backbone = build_backbone(wanted, SMALL)
    with pytest.raises(ModelError, match=f"deep.npz: holds a {deep}; expected a {wanted}"):
        load_weights(backbone, wanted, tmp_path / "deep.npz")
