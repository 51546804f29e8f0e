"""Configs of 3D runs: Human3.6M, MPII, mixes, rendered people, lifters."""

from pathlib import Path

import pytest
import tensorflow as tf

from rle_tf.config import LiftingConfig, ModelConfig, load_config
from rle_tf.data.crops import CropFormat
from rle_tf.data.h36m import H36mSource
from rle_tf.data.lifting import KeypointFormat
from rle_tf.data.mix import MixSource
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.pipeline import training_batches
from rle_tf.data.synthetic import Synthetic3DSource
from rle_tf.errors import ConfigError, DataError
from rle_tf.skeletons import COCO17, H36M18, MPII16

RECIPE = """\
name: three-dimensional
data:
  source:
{source}
  image_size: [64, 64]
model:
  backbone: resnet18
train:
  batch_size: 4
  epochs: 2
"""
H36M = """\
    kind: h36m
    root: {root}
    train: &files {{annotations: h36m.json, images: frames}}
    val: *files
"""
MIX = """\
    kind: mix
    root: {root}
    first:
      kind: h36m
      root: .
      train: &files {{annotations: h36m.json, images: frames}}
      val: *files
    second:
      kind: mpii
      root: .
      train: {{annotations: people.json, images: photographs}}
"""
SYNTHETIC = """\
    kind: synthetic
    layout: h36m
    root: {root}/rendered
    train_people: 6
    val_people: 5
    rendered_size: [64, 96]
"""


@pytest.fixture
def write_recipe(tmp_path):
    """`write_recipe(source)`: a recipe file whose data are in `tmp_path`."""

    def write(source: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(source=source.format(root=tmp_path).rstrip()))
        return path

    return write


def lifting(path: Path, *overrides: str):
    """The recipe at `path` for a lifter: without keys about images."""
    path.write_text(
        path.read_text()
        .replace("  image_size: [64, 64]\n", "")
        .replace("backbone: resnet18", "kind: lifting")
    )
    return load_config(path, overrides)


def refusal(path: Path, *overrides: str) -> list[str]:
    """The lines of the ConfigError, each without the file that it names."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    lines = str(error.value).splitlines()
    where = " --set ".join([str(path), *overrides]) + ": "
    assert all(line.startswith(where) for line in lines)
    return [line.removeprefix(where) for line in lines]


def assert_saved_as_it_is(config, folder: Path) -> None:
    config.save(folder / "resolved.yaml")
    assert load_config(folder / "resolved.yaml") == config


# ---- sources


def test_human36m(write_recipe, write_h36m, tmp_path):
    write_h36m()
    config = load_config(write_recipe(H36M))
    assert config.data.source.skeleton is H36M18
    assert isinstance(config.input_format, CropFormat)
    for split in ("train", "val"):
        source = config.open_source(split)
        assert isinstance(source, H36mSource) and len(source.records) == 3
    assert_saved_as_it_is(config, tmp_path)


def test_human36m_s_files_have_the_names_of_protocol_2_unless_others_are_given(write_recipe):
    config = load_config(write_recipe("    {{kind: h36m, root: ~/data}}"))
    train, val = config.data.source.train, config.data.source.val
    assert train.annotations == "annotations/Sample_trainmin_train_Human36M_protocol_2.json"
    assert val.annotations == "annotations/Sample_64_test_Human36M_protocol_2.json"
    assert train.images == val.images == "images" and val.detections is None
    with pytest.raises(ConfigError, match=r"^data\.source\.val\.detections: not set; evaluate\.bo"):
        config.open_source("val", boxes="detections")


def test_human36m_with_detections(write_recipe, write_h36m, tmp_path):
    write_h36m()
    entries = ", ".join(
        f'{{"image_id": {i}, "bbox": [20, 5, 40, 60], "score": 0.5}}' for i in (101, 102, 103)
    )
    (tmp_path / "boxes.json").write_text(f"[{entries}]")
    config = load_config(
        write_recipe(H36M),
        ["data.source.val={annotations: h36m.json, images: frames, detections: boxes.json}",
         "evaluate.boxes=detections"],
    )  # fmt: skip
    assert config.open_source("val").records.box_scores.tolist() == [0.5] * 3
    assert config.open_source("train").records.box_scores.tolist() == [0] * 3


def test_the_sample_opens_as_it_lies(write_recipe, h36m_sample, mpii_sample):
    """With the standard names, alone and mixed; `first.root` is relative to the mix's."""
    config = load_config(write_recipe("    {{kind: h36m}}"), [f"data.source.root={h36m_sample}"])
    assert len(config.open_source("val").records) == 4
    assert mpii_sample.parent == h36m_sample.parent
    mix = f"""\
    kind: mix
    root: {h36m_sample.parent}
    first: {{{{kind: h36m, root: h36m}}}}
    second: {{{{kind: mpii, root: mpii}}}}
"""
    assert load_config(write_recipe(mix)).open_source("train").parts == (4, 5)


def test_mpii(write_recipe, write_mpii, tmp_path):
    write_mpii()
    config = load_config(
        write_recipe("    {{kind: mpii, root: {root}}}"),
        ["data.source.train={annotations: people.json, images: photographs}"],
    )
    assert config.data.source.skeleton is MPII16 and config.data.source.val is None
    assert isinstance(config.open_source("train"), MpiiSource)
    with pytest.raises(ConfigError, match=r"^data\.source\.val: not set; expected annotations and"):
        config.open_source("val")
    with pytest.raises(ConfigError, match=r"^evaluate\.boxes: 'detections' is not for MPII"):
        config.open_source("val", boxes="detections")
    assert_saved_as_it_is(config, tmp_path)
    files = config.data.source.train.model_dump_json()
    named = load_config(tmp_path / "resolved.yaml", [f"data.source.val={files}"])
    assert len(named.open_source("val").records) == 3


@pytest.mark.parametrize("images", [True, False])
def test_rendered_people_in_3d(write_recipe, tmp_path, images):
    config = load_config(write_recipe(SYNTHETIC), [f"data.source.images={str(images).lower()}"])
    assert config.data.source.skeleton is H36M18
    assert_saved_as_it_is(config, tmp_path)
    if images:
        source, val = config.open_source("train"), config.open_source("val")
        assert isinstance(source, Synthetic3DSource)
        assert (len(source.records), len(val.records)) == (6, 5)
        assert source.records.image_wh[0].tolist() == [96, 64]
    else:
        with pytest.raises(ConfigError, match=r"^data\.source\.images: false, and the model look"):
            config.open_source("train")
    with pytest.raises(ConfigError, match=r"^evaluate\.boxes: 'detections' are not written in"):
        lifting(write_recipe(SYNTHETIC)).open_source("val", boxes="detections")


# ---- mixes


def test_a_mix_trains_on_both_and_is_scored_on_the_first(
    write_recipe, write_h36m, write_mpii, tmp_path
):
    write_h36m(people=4)
    write_mpii(people=2)
    config = load_config(write_recipe(MIX))
    assert config.data.source.skeleton is H36M18
    source, val = config.open_source("train"), config.open_source("val")
    assert isinstance(source, MixSource) and source.parts == (4, 2)
    assert isinstance(val, H36mSource) and len(val.records) == 4
    assert_saved_as_it_is(config, tmp_path)


def test_the_roots_of_a_mix_s_parts_are_inside_its_own_or_absolute(
    write_recipe, write_h36m, write_mpii, tmp_path
):
    write_h36m()
    write_mpii()
    (tmp_path / "h36m").mkdir()
    for name in ("h36m.json", "frames"):
        (tmp_path / name).rename(tmp_path / "h36m" / name)
    path = write_recipe(MIX)
    overrides = ["data.source.first.root=h36m", f"data.source.second.root={tmp_path}"]
    assert load_config(path, overrides).open_source("train").parts == (3, 3)
    moved = [*overrides, "data.source.root=/elsewhere", f"data.source.first.root={tmp_path}/h36m"]
    assert load_config(path, moved).open_source("train").parts == (3, 3)
    with pytest.raises(DataError, match="/elsewhere/h36m/h36m.json: no such file"):
        load_config(path, [*overrides, "data.source.root=/elsewhere"]).open_source("train")


def test_a_mix_of_other_kinds(write_recipe, write_coco, tmp_path):
    """COCO first: two coordinates, its joints, its score."""
    write_coco()
    config = load_config(
        write_recipe(f"""\
    kind: mix
    root: {tmp_path}
    first:
      kind: coco
      root: .
      train: &files {{{{annotations: people.json, images: photographs}}}}
      val: *files
    second:
{SYNTHETIC.replace("    ", "      ").replace("{root}/", "")}
""")
    )
    assert config.data.source.skeleton is COCO17
    source = config.open_source("train")
    assert source.parts == (3, 6) and source.records.keypoints.shape == (9, 17, 2)
    assert (tmp_path / "rendered" / "images").is_dir()
    assert len(config.open_source("val").records) == 3


def test_a_mix_skips_images_that_cannot_be_decoded(write_recipe, write_h36m, write_mpii, caplog):
    _, frames = write_h36m()
    _, photographs = write_mpii()
    next(frames.glob("s_11_act_03*/*.jpg")).write_bytes(b"no image")
    (photographs / "photo_0.jpg").write_bytes(b"no image")
    config = load_config(write_recipe(MIX), ["data.on_bad_image=skip"])
    source = config.open_source("train")
    assert source.parts == (2, 2) and "skipped 2 images with 2 people" in caplog.text
    assert source.first.records.image_ids.tolist() == [101, 103]
    for photograph in photographs.iterdir():
        photograph.write_bytes(b"no image")
    with pytest.raises(DataError, match="a mix of 2 and 0 people"):
        _ = config.open_source("train").parts


# ---- models


def test_the_kind_of_model_may_be_left_out(write_recipe, tmp_path):
    config = load_config(write_recipe(SYNTHETIC))
    assert config.model == ModelConfig(backbone="resnet18") and config.model.kind == "image"
    assert load_config(tmp_path / "recipe.yaml", ["model.kind=image"]) == config
    assert_saved_as_it_is(config, tmp_path)


def test_a_lifter_sees_no_images(write_recipe, write_h36m, tmp_path):
    _, frames = write_h36m()
    frames.rename(tmp_path / "gone")
    config = lifting(write_recipe(H36M), "model.width=32", "data.augmentation.flip_probability=0")
    assert config.model == LiftingConfig(width=32)
    assert isinstance(config.input_format, KeypointFormat)
    source = config.open_source("train")
    regressor = config.model.build(source.skeleton, 3, config.data.image_size)
    config.input_format.check(regressor)
    batches = training_batches(
        source.records, source.skeleton, config.input_format, config.data.augmentation,
        batch_size=3, seed=0, parts=source.parts,
    )  # fmt: skip
    [(inputs, target)] = batches.take(1)
    output = regressor(inputs)
    assert output["mu"].shape == target["keypoints"].shape == (3, 18, 3)
    assert bool(tf.reduce_all(tf.math.is_finite(inputs)))
    assert_saved_as_it_is(config, tmp_path)


def test_a_lifter_needs_no_pictures_of_rendered_people(write_recipe, tmp_path):
    config = lifting(write_recipe(SYNTHETIC), "data.source.images=false")
    assert len(config.open_source("train").records) == 6
    assert not (tmp_path / "rendered" / "images").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.image_size=[64, 96]",
            "data.image_size: found [64, 96]; a model of kind lifting see",
        ),
        ("data.box_margin=1.5", "data.box_margin: found 1.5; a model of kind lifting sees no"),
        ("data.std=[1, 1, 2]", "data.std: found [1.0, 1.0, 2.0]; a model of kind lifting sees no"),
        ("data.on_bad_image=skip", 'data.on_bad_image: found "skip"; a model of kind lifting sees'),
        ("model.backbone=resnet18", "model.backbone: unknown key; valid keys: kind, width, blocks"),
        ("model.width=0", "model.width: found 0; expected greater than 0"),
        ("model.dropout=1", "model.dropout: found 1; expected less than 1"),
    ],
)
def test_what_is_no_lifter_s(write_recipe, override, message):
    path = write_recipe(H36M)
    lifting(path)
    lines = refusal(path, override)
    assert len(lines) == 1 and lines[0].startswith(message), lines


def test_a_lifter_of_people_in_two_dimensions_is_refused(write_recipe, write_h36m, write_mpii):
    config = lifting(write_recipe("    {{kind: coco, root: {root}}}"))
    with pytest.raises(ConfigError, match=r"^model\.kind: lifting, .*'coco17'; expected a source"):
        config.open_source("train")
    # MPII has a pelvis, and no depths.
    write_h36m()
    write_mpii()
    config = lifting(write_recipe(MIX))
    source = config.open_source("train")
    with pytest.raises(DataError, match=r"without depths or cameras, the first in .*photo_0\.jpg"):
        config.input_format.columns(source.records)


# ---- mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source.first.rot=3", "data.source.first.rot: unknown key; did you mean 'root'? "
         "valid keys: kind, root, train, val"),
        ("data.source.first.layout=h36m", "data.source.first.layout: unknown key; valid keys: "
         "kind, root, train, val"),
        ("data.source.first.val.image=3", "data.source.first.val.image: unknown key; did you mean "
         "'images'? valid keys: annotations, images, detections"),
        ("data.source.second={kind: synthetic, root: a, people: 3}", "data.source.second.people: "
         "unknown key; did you mean 'val_people'? valid keys: kind, root, layout, images, "
         "train_people, val_people, rendered_size, seed"),
        ("data.source.third=3", "data.source.third: unknown key; valid keys: kind, root, first, "
         "second"),
        ("data.source.train.images=3", "data.source.train: unknown key; valid keys: kind, root, "),
        ("data.source.first.kind=mix", "data.source.first.kind: found \"mix\"; expected one of "
         "'coco', 'h36m', 'lsp', 'mpii', 'synthetic'"),
        ("data.source.first={root: a}", "data.source.first.kind: missing"),
        ("data.source.first=h36m", 'data.source.first: found "h36m"; expected an object'),
        ("data.source.first.root=3", "data.source.first.root: found 3; expected a valid string"),
        ("data.source={kind: mix, second: {kind: mpii, root: a}}", "data.source.first: missing"),
        ("model.kind=heatmap", "model.kind: found \"heatmap\"; expected one of 'image', 'lifting'"),
        ("model.kind=[1]", "model.kind: found \"[1]\"; expected one of 'image', 'lifting'"),
        ("model=3", "model: found 3; expected an object"),
        ("model={}", "model.backbone: missing"),
        ("model.width=3", "model.width: unknown key; valid keys: kind, backbone, weights"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(write_recipe, override, message):
    lines = refusal(write_recipe(MIX), override)
    assert any(line.startswith(message) for line in lines), lines


def test_pictures_are_always_rendered_in_layout_coco(write_recipe):
    path = write_recipe(SYNTHETIC)
    [line] = refusal(path, "data.source.images=false", "data.source.layout=coco")
    assert line.startswith("data.source: found {") and line.endswith("is for layout h36m")


def test_what_is_not_set_in_a_part_of_a_mix_is_named_with_its_place(write_recipe, write_h36m):
    write_h36m()
    path = write_recipe(MIX)
    with pytest.raises(ConfigError, match=r"^data\.source\.first\.val\.detections: not set"):
        load_config(path).open_source("val", boxes="detections")
    swapped = "data.source.first={kind: mpii, root: .}"
    with pytest.raises(ConfigError, match=r"^data\.source\.first\.val: not set"):
        load_config(path, [swapped]).open_source("val")
    rendered = (
        "data.source.second={kind: synthetic, root: r, layout: h36m, images: false, "
        "train_people: 4, val_people: 4}"
    )
    with pytest.raises(ConfigError, match=r"^data\.source\.second\.images: false, and the model"):
        load_config(path, [rendered]).open_source("train")
