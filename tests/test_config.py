"""Configs: what loads, what is saved, and what is said of every kind of mistake."""

from pathlib import Path

import pytest

from rle_tf.config import L1LossConfig, RLELossConfig, load_config
from rle_tf.data.augment import Augmentation
from rle_tf.errors import ConfigError
from rle_tf.losses import DensityLoss, L2Loss

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))

RECIPE = """\
name: small
data:
  source:
    kind: coco
    root: somewhere
  augmentation:
    rotation_deg: 30
model:
  backbone: mobilenet
loss:
  kind: rle
  base: gaussian
train:
  batch_size: 32
  epochs: 3
  learning_rate: 1e-3
  drop_epochs: [2]
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path, *overrides) -> list[str]:
    """The lines of the ConfigError, each without the file that it names."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    lines = str(error.value).splitlines()
    where = " --set ".join([str(path), *overrides]) + ": "
    assert all(line.startswith(where) for line in lines)
    return [line.removeprefix(where) for line in lines]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads(path, tmp_path):
    config = load_config(path, ["data.source.root=elsewhere"])
    config.save(tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_values_are_read_and_defaults_filled_in(recipe):
    config = load_config(recipe)
    assert config.train.learning_rate == 0.001  # a string in YAML 1.1
    assert config.train.drop_epochs == (2,)
    assert config.data.augmentation == Augmentation(rotation_deg=30.0)
    assert config.loss == RLELossConfig(base="gaussian", flow_layers=6, flow_hidden=64)
    assert config.evaluate.flip_test and config.data.image_size == (256, 192)


@pytest.mark.parametrize("name", ["1e3", "null", "on", "2026-01-01", "0x10", "übung"])
def test_what_is_saved_loads_as_the_same(recipe, tmp_path, name):
    config = load_config(recipe, [f"name='{name}'", "train.learning_rate=1e-05", "seed=7"])
    assert config.name == name
    config.save(tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config
    assert "keep_checkpoints: 2" in (tmp_path / "resolved.yaml").read_text("utf-8")


def test_overrides(recipe):
    config = load_config(
        recipe,
        [
            "train.batch_size=64",
            "train.learning_rate=5e-4",
            "train.drop_epochs=[1, 2]",
            "train.clip_norm=null",
            "data.image_size=[64, 96]",
            "data.source.root='10'",
            "data.source.val.annotations=val.json",
            "data.source.val.images=val",
            "evaluate.boxes=detections",
            "evaluate.flip_test=false",
            "seed=1",
            "seed=2",
        ],
    )
    assert (config.train.batch_size, config.train.learning_rate) == (64, 5e-4)
    assert config.train.drop_epochs == (1, 2) and config.train.clip_norm is None
    assert config.data.image_size == (64, 96)
    assert config.data.source.root == "10"
    # A section that the file has not: it replaces the default one whole.
    assert config.data.source.val.annotations == "val.json"
    assert config.data.source.val.detections is None
    assert config.evaluate.boxes == "detections" and config.evaluate.flip_test is False
    assert config.seed == 2


def test_an_override_replaces_a_section(recipe):
    config = load_config(recipe, ["loss={kind: l1}", "data.source.root=a=b"])
    assert config.loss == L1LossConfig()
    for kind, base in (("laplace", "laplace"), ("gaussian", "gaussian")):
        loss = load_config(recipe, [f"loss={{kind: {kind}}}"]).loss.build(2, 14)
        assert isinstance(loss, DensityLoss) and loss.base == base
    assert isinstance(load_config(recipe, ["loss={kind: l2}"]).loss.build(2, 14), L2Loss)
    assert config.data.source.root == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size", "expected SECTION.KEY=VALUE"),
        ("=3", "expected SECTION.KEY=VALUE"),
        ("train.=3", "expected SECTION.KEY=VALUE"),
        (".seed=3", "expected SECTION.KEY=VALUE"),
        ("train..epochs=3", "expected SECTION.KEY=VALUE"),
        ("name.first=3", "'name' is 'small', not a section"),
        ("train.drop_epochs=[1", "not YAML: line 1: expected ',' or ']'"),
    ],
)
def test_bad_forms_of_overrides(recipe, override, message):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, [override])
    assert str(error.value).startswith(f"--set {override}: {message}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=3", "sede: unknown key; did you mean 'seed'? valid keys: name, seed, data, model,"),
        ("train.batchsize=3", "train.batchsize: unknown key; did you mean 'batch_size'? valid "
         "keys: batch_size, epochs, steps_per_epoch, learning_rate, "),
        ("data.source.rot=3", "data.source.rot: unknown key; did you mean 'root'? valid keys: "
         "kind, root, train, val"),
        ("data.source.train.anotations=a", "data.source.train.anotations: unknown key; did you "
         "mean 'annotations'? valid keys: annotations, images, detections"),
        ("data.augmentation.rotation=3", "data.augmentation.rotation: unknown key; did you mean "
         "'rotation_deg'? valid keys: flip_probability, scale_range, "),
        ("loss.bass=laplace", "loss.bass: unknown key; did you mean 'base'? valid keys: kind, "
         "base, convention, flow_layers, flow_hidden"),
        ("evaluate.qqq=3", "evaluate.qqq: unknown key; valid keys: batch_size, flip_test, "),
        # Keys of another kind of source or loss are no keys here.
        ("data.source.train_people=3", "data.source.train_people: unknown key; valid keys: "
         "kind, root, train, val"),
        ("loss={kind: l1, base: laplace}", "loss.base: unknown key; valid keys: kind"),
    ],
)  # fmt: skip
def test_a_typo_is_answered_with_the_valid_keys(recipe, override, message):
    lines = refusal(recipe, override)
    assert any(line.startswith(message) for line in lines), lines


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size='64'", 'train.batch_size: found "64"; expected a valid integer'),
        ("train.batch_size=1.5", "train.batch_size: found 1.5; expected a valid integer"),
        ("train.batch_size=true", "train.batch_size: found true; expected a valid integer"),
        ("train.batch_size=null", "train.batch_size: found null; expected a valid integer"),
        ("train.batch_size=0", "train.batch_size: found 0; expected greater than 0"),
        ("train.learning_rate=1e-3x", 'train.learning_rate: found "1e-3x"; expected a valid num'),
        ("train.learning_rate=.inf", "train.learning_rate: found Infinity; expected a finite num"),
        ("train.drop_epochs=[2, 1]", "train.drop_epochs: found [2, 1]; expected epochs from 1 on"),
        ("train.drop_epochs=[0]", "train.drop_epochs: found [0]; expected epochs from 1 on"),
        ("train.drop_epochs=[1, x]", 'train.drop_epochs.1: found "x"; expected a valid integer'),
        ("train=3", "train: found 3; expected an object"),
        ("train=null", "train: found null; expected an object"),
        ("evaluate.flip_test=1", "evaluate.flip_test: found 1; expected a valid boolean"),
        ("evaluate.flip_test=on", 'evaluate.flip_test: found "on"; expected a valid boolean'),
        ("evaluate.oks_nms=1.1", "evaluate.oks_nms: found 1.1; expected less than or equal to 1"),
        ("data.image_size=[100, 96]", "data.image_size.0: found 100; expected a multiple of 32"),
        ("data.image_size=[64]", "data.image_size.1: missing"),
        ("data.image_size=64", "data.image_size: found 64; expected a valid array"),
        ("data.std=[1, 1, 0]", "data.std.2: found 0; expected greater than 0"),
        ("data.source.kind=lip", "data.source.kind: found \"lip\"; expected one of 'coco', 'h36m'"),
        ("data.source={root: here}", "data.source.kind: missing"),
        ("data.source=here", 'data.source: found "here"; expected '),
        ("data.source.root=3", "data.source.root: found 3; expected a valid string"),
        ("data={}", "data.source: missing"),
        (
            "loss={kind: l3}",
            "loss.kind: found \"l3\"; expected one of 'rle', 'direct', 'l1'",
        ),
        ("loss.base=cauchy", "loss.base: found \"cauchy\"; expected 'laplace' or 'gaussian'"),
        ("model.backbone=resnet51", "model.backbone: found \"resnet51\"; expected 'resnet18', "),
        ("name=..", 'name: found ".."; string should match pattern'),
        ("name=a/b", 'name: found "a/b"; string should match pattern'),
        ("seed=-1", "seed: found -1; expected greater than or equal to 0"),
    ],
)
def test_a_value_that_does_not_fit(recipe, override, message):
    lines = refusal(recipe, override)
    assert any(line.startswith(message) for line in lines), lines


def test_all_problems_are_listed(recipe):
    recipe.write_text(RECIPE.replace("epochs: 3", "epoch: 3").replace("name: small", "seed: x"))
    lines = refusal(recipe)
    assert [line.split(";")[0] for line in lines] == [
        "name: missing",
        'seed: found "x"',
        "train.epochs: missing",
        "train.epoch: unknown key",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML: line 1: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "not YAML: line 2: found character '\\t'"),
        (RECIPE + "name: again\n", 'not YAML: line 18: found duplicate key "name"'),
        ("", "holds None; expected sections of keys and values"),
        ("- a", "holds ['a']; expected sections of keys and values"),
        ("a: &a {b: *a}", "not a tree of keys and values: "),
    ],
)
def test_a_file_that_is_no_recipe(recipe, text, message):
    recipe.write_text(text)
    [line] = refusal(recipe)
    assert line.startswith(message)


def test_a_file_that_cannot_be_read(tmp_path):
    [line] = refusal(tmp_path / "absent.yaml")
    assert line == "no such file or directory; expected a YAML recipe (see configs/)"
    [line] = refusal(tmp_path)
    assert line == "is a directory; expected a YAML recipe (see configs/)"
    (tmp_path / "latin1.yaml").write_bytes(b"name: \xfcbung")
    [line] = refusal(tmp_path / "latin1.yaml")
    assert line.startswith("not UTF-8: ")


def test_detections_that_the_split_does_not_name(recipe):
    config = load_config(
        recipe, ["evaluate.boxes=detections", "data.source.val={annotations: a, images: b}"]
    )
    with pytest.raises(ConfigError, match=r"data\.source\.val\.detections: not set"):
        config.open_source("val")


MAPS = (
    "model.head=soft_argmax",
    "model.output_layer=conv_pw_11_relu",
    "model.pyramid=[conv_pw_5_relu]",
    "model.map_sigma=true",
    "train.map_weight=1.0",
)


def test_something_is_trained(recipe):
    assert load_config(recipe, ["model.trained=none"]).model.trained == "none"
    assert load_config(recipe, ["model.trained=sigma", "loss={kind: laplace}"])
    for trained, overrides, message in (
        ("sigma", ["loss={kind: l1}"], "found sigma with loss.kind l1, of which nothing would le"),
        ("none", ["loss={kind: laplace}"], "found none with .* laplace, .* loss rle, direct"),
        ("none", ["loss={kind: rle, flow_layers: 0}"], "flow_layers: found 0 .*; expected 1 or m"),
        ("sigma", ["loss={kind: heatmap}", "model.head=heatmap"], "head heatmap; expected all"),
        ("sigma", MAPS, "train.map_weight: found 1.0 with model.trained sigma, .*; expected 0"),
        ("mean", [], "model.trained: found .mean.; expected .*'all', 'sigma' or 'none'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(recipe, [f"model.trained={trained}", *overrides])


def test_what_needs_maps_is_refused_without_them(recipe):
    assert load_config(recipe, [*MAPS]).model.pyramid == ("conv_pw_5_relu",)
    for override, message in (
        ("model.pyramid=[a]", "model: found .*pyramid is of heads soft_argmax and heatmap"),
        ("model.map_sigma=true", "model: found .*map_sigma is of head soft_argmax"),
        ("model.sigma_dropout=0.5", "model: found .*sigma_dropout is of what map_sigma adds"),
        ("model.sigma_dropout=1.0", "model.sigma_dropout: found 1.0; .*less than 1"),
        ("model.map_window=1.2", "model: found .*map_window is of head soft_argmax"),
        ("model.deconvolutions=3", "model: found .*deconvolutions is of heads .*; expected none"),
        ("model.head=heatmap", "loss.kind: found rle with model.head heatmap; expected loss heatm"),
        ("loss={kind: heatmap}", "loss.kind: found heatmap with model.head pooled; expected loss"),
        ("train.map_weight=0.5", "train.map_weight: found 0.5 for a model without maps of s"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(recipe, [override])
    with pytest.raises(ConfigError, match="train: found .*drop_epochs are of schedule steps"):
        load_config(recipe, ["train.schedule=cosine"])
    assert load_config(recipe, ["train.schedule=cosine", "train.drop_epochs=[]"])
