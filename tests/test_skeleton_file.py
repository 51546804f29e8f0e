"""Skeletons in files: read, written back, refused where they are wrong."""

import pytest
from ruamel.yaml import YAML

from rle_tf.config import load_config
from rle_tf.errors import ConfigError
from rle_tf.skeleton_file import read_skeleton, skeleton_content
from rle_tf.skeletons import PERSON19, SKELETONS, Skeleton

HAND = {
    "name": "hand3",
    "joints": ["wrist", "left_tip", "right_tip"],
    "flip_pairs": [["left_tip", "right_tip"]],
    "bones": [["wrist", "left_tip"], ["wrist", "right_tip"]],
    "upper_body": ["left_tip"],
    "oks_sigmas": {"wrist": 0.03, "right_tip": 0.02, "left_tip": 0.01},
}


@pytest.fixture
def write(tmp_path):
    def write(content) -> str:
        path = tmp_path / "skeleton.yaml"
        with path.open("w") as file:
            YAML(typ="safe", pure=True).dump(content, file)
        return str(path)

    return write


def test_a_file_is_read(write):
    assert read_skeleton(write(HAND)) == Skeleton(
        name="hand3",
        joints=("wrist", "left_tip", "right_tip"),
        flip_pairs=((1, 2),),
        bones=((0, 1), (0, 2)),
        upper_body=(1,),
        oks_sigmas=(0.03, 0.01, 0.02),
    )


@pytest.mark.parametrize("name", SKELETONS)
def test_what_comes_with_rle_tf_goes_by_its_name_and_survives_a_file(name, write):
    skeleton = SKELETONS[name]
    assert read_skeleton(name) is skeleton and skeleton_content(skeleton) == name
    renamed = Skeleton(**{**vars(skeleton), "name": "mine"})
    assert read_skeleton(write(skeleton_content(renamed))) == renamed


def test_the_union_has_every_joint_of_coco_and_leeds_sports_pose():
    assert PERSON19.joints[:17] == SKELETONS["coco17"].joints
    assert set(SKELETONS["lsp14"].joints) <= set(PERSON19.joints)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": []}, r"joints: found \(\); .*at least 1"),
        ({"joints": ["wrist", "wrist"]}, "joints: found 'wrist' twice; expected it once"),
        ({"joints": [1, 2]}, "joints.0: found 1; expected a valid string"),
        ({"bones": [["wrist", "elbow"]]}, "bones: found 'elbow'; expected names of its joints, .*"),
        ({"bones": [["wrist"]]}, "bones.0.1: .*[Ff]ield required"),
        ({"flip_pairs": [["wrist", "left_tip"], ["left_tip", "right_tip"]]}, "'left_tip' twice"),
        ({"flip_pairs": [["wrist", "wrist"]]}, "flip_pairs: found 'wrist' twice"),
        ({"upper_body": ["thumb"]}, "upper_body: found 'thumb'; expected names"),
        ({"oks_sigmas": {"wrist": 0.1}}, "oks_sigmas: found none of left_tip, right_tip; expected"),
        ({"oks_sigmas": {"wrist": -1.0}}, "oks_sigmas.wrist: found -1.0; expected greater than 0"),
        ({"sigmas": [1]}, "sigmas: found .*not permitted"),
    ],
)
def test_wrong_entries_are_named(change, message, write):
    with pytest.raises(ConfigError, match=rf"skeleton.yaml: .*{message}"):
        read_skeleton(write(HAND | change))


def test_what_is_no_skeleton_is_named(write, tmp_path):
    with pytest.raises(ConfigError, match="person18: no such skeleton; expected one of coco17, "):
        read_skeleton("person18")
    with pytest.raises(ConfigError, match=r"skeleton.yaml: holds \[1\]; expected name, joints"):
        read_skeleton(write([1]))
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="bad.yaml: cannot be read as YAML: .*; expected one of"):
        read_skeleton(tmp_path / "bad.yaml")


RECIPE = """
name: mine
data: {{source: {source}}}
model: {{backbone: resnet18}}
train: {{batch_size: 4, epochs: 1}}
"""


def test_a_resolved_config_needs_the_file_no_more(write, tmp_path):
    recipe, saved = tmp_path / "recipe.yaml", tmp_path / "saved.yaml"
    file = write(HAND)
    recipe.write_text(RECIPE.format(source=f"{{kind: coco, root: x, skeleton: {file}}}"))
    config = load_config(recipe)
    config.save(saved)
    (tmp_path / "skeleton.yaml").unlink()
    again = load_config(saved)
    assert again == config and again.data.source.skeleton == read_skeleton(HAND)
    with pytest.raises(ConfigError, match="data.source.skeleton: found .*no such skeleton"):
        load_config(recipe)


def test_a_mix_has_the_first_s_skeleton_unless_it_says_another(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    first = "{kind: lsp, root: a, train: [1, 2], val: [3, 4]}"
    mix = f"kind: mix, first: {first}, second: {{kind: coco, root: b}}"
    recipe.write_text(RECIPE.format(source=f"{{{mix}}}"))
    assert load_config(recipe).data.source.skeleton.name == "lsp14"
    recipe.write_text(RECIPE.format(source=f"{{{mix}, skeleton: person19}}"))
    assert load_config(recipe).data.source.skeleton is PERSON19
    recipe.write_text(RECIPE.format(source=f"{{{mix}, skeleton: 3}}"))
    with pytest.raises(ConfigError, match="data.source.skeleton: found 3; expected the name of a"):
        load_config(recipe)
    recipe.write_text(RECIPE.format(source=f"{{{mix.replace('[1, 2]', '[1]')}}}"))
    with pytest.raises(ConfigError) as error:
        load_config(recipe)
    assert "data.source.first.train" in str(error.value) and "\n" not in str(error.value)
