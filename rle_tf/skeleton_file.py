"""Skeletons of one's own: a YAML file, or the same as a section of a recipe."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rle_tf.errors import ConfigError
from rle_tf.skeletons import SKELETONS, Skeleton

_Name = Annotated[str, Field(min_length=1)]
_Pair = tuple[str, str]


class _File(BaseModel):
    """What the file holds; joints go by their names."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    name: _Name
    joints: Annotated[tuple[_Name, ...], Field(min_length=1)]
    flip_pairs: tuple[_Pair, ...] = ()
    bones: tuple[_Pair, ...] = ()
    upper_body: tuple[str, ...] = ()
    oks_sigmas: dict[str, Annotated[float, Field(gt=0)]] = {}


def read_skeleton(skeleton: str | Path | dict) -> Skeleton:
    """A skeleton by its name, by the path of a YAML file, or by what such a file holds:

        name: hand5
        joints: [wrist, left_thumb, right_thumb, left_little, right_little]
        flip_pairs: [[left_thumb, right_thumb], [left_little, right_little]]
        bones: [[wrist, left_thumb], [wrist, right_thumb]]
        upper_body: [wrist]                 # optional: one half, for half-body augmentation
        oks_sigmas: {wrist: 0.03, ...}      # optional: of every joint, for OKS and AP

    Raises:
        ConfigError: for an unknown name, or a file that is absent or something else; the message
            names the key, what was found and what was expected.
    """
    if isinstance(skeleton, str) and skeleton in SKELETONS:
        return SKELETONS[skeleton]
    where = "skeleton"
    if not isinstance(skeleton, dict):
        where = str(skeleton)
        skeleton = _content(Path(skeleton).expanduser())
    try:
        content = _File.model_validate(_tuples(skeleton))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: "
            f"found {problem['input']!r:.100}; "
            + problem["msg"].replace("Input should be", "expected")
            for problem in error.errors()
        ]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from None
    _check(content, where)
    index = content.joints.index
    return Skeleton(
        name=content.name,
        joints=content.joints,
        flip_pairs=tuple((index(a), index(b)) for a, b in content.flip_pairs),
        bones=tuple((index(a), index(b)) for a, b in content.bones),
        upper_body=tuple(map(index, content.upper_body)),
        oks_sigmas=tuple(content.oks_sigmas[joint] for joint in content.joints)
        if content.oks_sigmas
        else (),
    )


def skeleton_content(skeleton: Skeleton) -> str | dict:
    """What `read_skeleton` makes the same skeleton of: the name of one that comes with rle-tf, or
    what a file of it holds."""
    if SKELETONS.get(skeleton.name) == skeleton:
        return skeleton.name
    names = skeleton.joints
    return {
        "name": skeleton.name,
        "joints": list(names),
        "flip_pairs": [[names[a], names[b]] for a, b in skeleton.flip_pairs],
        "bones": [[names[a], names[b]] for a, b in skeleton.bones],
        "upper_body": [names[joint] for joint in skeleton.upper_body],
        "oks_sigmas": dict(zip(names, skeleton.oks_sigmas, strict=False)),
    }


def _content(path: Path) -> dict:
    expected = f"expected one of {', '.join(SKELETONS)}, or the path of a YAML file"
    if not path.is_file():
        raise ConfigError(f"{path}: no such skeleton; {expected}")
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {reason:.200}; {expected}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {content!r:.100}; expected name, joints and so on")
    return content


def _tuples(value):
    """Lists, of which YAML and JSON are made, as the tuples that strict types are."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check(content: _File, where: str) -> None:
    joints = set(content.joints)
    paired = [joint for pair in content.flip_pairs for joint in pair]
    for key, names in (("joints", content.joints), ("flip_pairs", paired)):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ConfigError(f"{where}: {key}: found {twice[0]!r} twice; expected it once")
    bones = [joint for bone in content.bones for joint in bone]
    for key, names in (
        ("flip_pairs", paired),
        ("bones", bones),
        ("upper_body", content.upper_body),
        ("oks_sigmas", content.oks_sigmas),
    ):
        if unknown := [name for name in names if name not in joints]:
            raise ConfigError(
                f"{where}: {key}: found {unknown[0]!r}; expected names of its joints, which are "
                + ", ".join(content.joints)
            )
    if content.oks_sigmas and (lacking := joints - set(content.oks_sigmas)):
        raise ConfigError(
            f"{where}: oks_sigmas: found none of {', '.join(sorted(lacking))}; expected one of "
            "each joint, or no oks_sigmas"
        )
