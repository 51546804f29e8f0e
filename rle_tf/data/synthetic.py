"""Rendered articulated people, written to disk as a COCO keypoints dataset.

A body is a kinematic tree in three dimensions, metres; a pose turns its joints within human
limits; a perspective camera looks at it; every body part is a round cone (a capsule with two
radii, stretched where a body is flat) that each pixel's ray is intersected with, so that
self-occlusion, occlusion between people and each joint's visibility come from one depth map.
Left and right limbs wear the same colours: only the body's shape and face tell them apart.

This module imports no TensorFlow, and must not: worker processes start by importing it.

Frames of reference. World and body: x to the person's left, y up, z forward. Camera: x right,
y down, z along the view. Pixels: the centre of the top left pixel is (0, 0).
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rle_tf.errors import ConfigError, DataError
from rle_tf.skeletons import COCO17

RENDERER_VERSION = 1  # raise it with any change that alters what is written
MANIFEST = "synthetic.json"
# Below this many images, starting workers takes longer than rendering in this process.
_MIN_IMAGES_FOR_WORKERS = 150
_SUPERSAMPLING = 2
_SIDES = (("left", 1.0), ("right", -1.0))

# ------------------------------------------------------------------------------------------------
# Bodies and poses
# ------------------------------------------------------------------------------------------------

# joint: (parent joint, segment whose rotation carries the bone from the parent to the joint).
TREE: dict[str, tuple[str, str]] = {
    "torso": ("pelvis", "abdomen"),
    "thorax": ("torso", "chest"),
    "neck": ("thorax", "head"),
    "head_top": ("neck", "head"),
    "nose": ("neck", "head"),
}
for _side, _ in _SIDES:
    TREE |= {
        f"{_side}_eye": ("neck", "head"),
        f"{_side}_ear": ("neck", "head"),
        f"{_side}_shoulder": ("thorax", "chest"),
        f"{_side}_elbow": (f"{_side}_shoulder", f"{_side}_upper_arm"),
        f"{_side}_wrist": (f"{_side}_elbow", f"{_side}_forearm"),
        f"{_side}_hand": (f"{_side}_wrist", f"{_side}_hand"),
        f"{_side}_hip": ("pelvis", "pelvis"),
        f"{_side}_knee": (f"{_side}_hip", f"{_side}_thigh"),
        f"{_side}_ankle": (f"{_side}_knee", f"{_side}_shank"),
        f"{_side}_heel": (f"{_side}_ankle", f"{_side}_foot"),
        f"{_side}_toe": (f"{_side}_ankle", f"{_side}_foot"),
    }

# Rest offset of each joint from its parent, in body heights: arms and legs straight down.
# Segment lengths after Drillis and Contini's body segment parameters (1966), as in Winter's
# "Biomechanics and Motor Control of Human Movement"; the offsets of the left side.
_REST = {
    "torso": (0.0, 0.115, 0.0),
    "thorax": (0.0, 0.175, 0.0),
    "neck": (0.0, 0.05, 0.005),
    "head_top": (0.0, 0.13, 0.0),
    "nose": (0.0, 0.052, 0.068),
    "eye": (0.02, 0.073, 0.057),
    "ear": (0.046, 0.062, 0.0),
    "shoulder": (0.108, -0.012, 0.0),
    "elbow": (0.0, -0.175, 0.0),
    "wrist": (0.0, -0.152, 0.0),
    "hand": (0.0, -0.075, 0.0),
    "hip": (0.052, -0.01, 0.0),
    "knee": (0.0, -0.242, 0.0),
    "ankle": (0.0, -0.24, 0.0),
    "heel": (0.0, -0.022, -0.02),
    "toe": (0.0, -0.026, 0.105),
}

_OF_HEAD = ("head_top", "nose", "eye", "ear")

# Ranges of the angles, degrees. Ball joints: (flexion, abduction or bending to the left, twist
# outwards or to the left); hinges: flexion, 0 is straight and negative would be overextended.
LIMITS_DEG: dict[str, tuple[tuple[float, float], ...]] = {
    "spine": ((-20, 55), (-25, 25), (-35, 35)),
    "neck": ((-35, 45), (-25, 25), (-65, 65)),
    "shoulder": ((-45, 175), (-20, 170), (-80, 85)),
    "elbow": ((0, 145),),
    "wrist": ((-40, 40),),
    "hip": ((-25, 125), (-12, 60), (-30, 40)),
    "knee": ((0, 145),),
    "ankle": ((-20, 45),),
}


@dataclass(frozen=True)
class Body:
    """One person's proportions.

    Attributes:
        height: Stature, metres.
        girth: Factor on the thickness of every part; 1 is average.
        offsets: Rest offset (3,) of each joint of `TREE` from its parent, metres, in the frame
            of the segment that carries it.
    """

    height: float
    girth: float
    offsets: dict[str, np.ndarray]


@dataclass(frozen=True)
class Pose:
    """Where a body's joints are and how its segments are turned, in one frame of reference.

    Attributes:
        joints: Position (3,) of each joint, metres: `"pelvis"` and the joints of `TREE`, which
            hold COCO's 17.
        rotations: Rotation (3, 3) of each segment named in `TREE`; its columns are the segment's
            left, up and forward.
    """

    joints: dict[str, np.ndarray]
    rotations: dict[str, np.ndarray]

    def coco(self) -> np.ndarray:
        """(17, 3) positions in the order of `COCO17`, metres."""
        return np.stack([self.joints[name] for name in COCO17.joints])


def sample_body(rng: np.random.Generator) -> Body:
    """A body 1.5 to 1.9 m tall, each bone within 6 % of the average share of the height."""
    height = rng.uniform(1.5, 1.9)
    offsets = {}
    head = rng.uniform(0.94, 1.06)  # one factor, or the eyes would sink into the skull
    for joint, rest in _REST.items():
        factor = head if joint in _OF_HEAD else rng.uniform(0.94, 1.06)
        offset = np.array(rest) * height * factor
        if joint in TREE:
            offsets[joint] = offset
        else:
            for side, sign in _SIDES:
                offsets[f"{side}_{joint}"] = offset * (sign, 1, 1)
    return Body(height, rng.uniform(0.85, 1.25), offsets)


@dataclass(frozen=True)
class _Limb:
    """Ranges in degrees; flexion is measured from the vertical, knee and elbow are `hinge`."""

    flexion: tuple[float, float]
    abduction: tuple[float, float]
    twist: tuple[float, float]
    hinge: tuple[float, float]


_ARMS = {
    "hang": _Limb((-15, 25), (4, 20), (-30, 30), (3, 40)),
    "swing_forward": _Limb((10, 50), (4, 18), (-25, 10), (10, 100)),
    "swing_back": _Limb((-40, -5), (4, 18), (-20, 20), (5, 90)),
    "on_hip": _Limb((-25, 0), (38, 58), (-75, -50), (80, 110)),
    "folded": _Limb((20, 40), (8, 25), (-65, -45), (85, 115)),
    "forward": _Limb((60, 110), (-5, 25), (-30, 40), (0, 80)),
    "sideways": _Limb((-15, 25), (65, 110), (-40, 60), (0, 60)),
    "flexed_up": _Limb((-10, 25), (70, 110), (65, 85), (60, 125)),
    "overhead": _Limb((130, 175), (0, 30), (-40, 40), (0, 60)),
    "wide_up": _Limb((-10, 20), (115, 165), (-40, 70), (0, 70)),
    "to_face": _Limb((40, 90), (5, 40), (-60, -20), (110, 142)),
    "lap": _Limb((15, 45), (4, 22), (-45, -5), (30, 80)),
}


@dataclass(frozen=True)
class _Activity:
    """What people do: ranges in degrees, and the ways that their arms may go.

    `lean` tips the whole body forward, `bend` the trunk alone. The two legs are drawn from
    `legs` and changed over at random; so are arms where `arms` holds a pair for a side each.
    """

    share: float
    legs: tuple[_Limb, _Limb]
    arms: tuple[str | tuple[str, str], ...]
    lean: tuple[float, float] = (-6, 8)
    bend: tuple[float, float] = (-3, 8)


_STRAIGHT = _Limb((-6, 8), (0, 11), (-5, 25), (0, 12))
_SQUATTING = _Limb((65, 105), (5, 40), (0, 30), (90, 140))
_SEATED = _Limb((68, 98), (0, 28), (-10, 20), (55, 105))
_SWING = ("swing_forward", "swing_back")
ACTIVITIES: dict[str, _Activity] = {
    "stand": _Activity(
        0.22,
        (_STRAIGHT, _Limb((-8, 20), (0, 16), (-5, 30), (0, 35))),
        ("hang", "hang", "on_hip", "folded", "to_face", ("hang", "to_face"), ("hang", "on_hip")),
    ),
    "walk": _Activity(
        0.18,
        (_Limb((12, 42), (0, 6), (-5, 12), (0, 35)), _Limb((-24, -4), (0, 6), (-5, 12), (5, 65))),
        (_SWING, _SWING, "hang", ("hang", "forward")),
        lean=(0, 12),
    ),
    "run": _Activity(
        0.08,
        (_Limb((35, 80), (0, 8), (-5, 8), (40, 110)), _Limb((-22, 0), (0, 8), (-5, 8), (10, 95))),
        (_SWING,),
        lean=(4, 22),
    ),
    "sit": _Activity(
        0.13,
        (_SEATED, _SEATED),
        ("lap", "lap", "folded", "forward", ("lap", "to_face"), ("lap", "forward"), "to_face"),
        lean=(-15, 12),
        bend=(-5, 15),
    ),
    "arms_up": _Activity(
        0.12,
        (_STRAIGHT, _Limb((-8, 12), (0, 30), (-5, 25), (0, 20))),
        ("overhead", "wide_up", "flexed_up", "sideways", ("overhead", "hang"), ("wide_up", "lap")),
    ),
    "reach": _Activity(
        0.08,
        (_STRAIGHT, _Limb((0, 40), (0, 20), (-5, 20), (0, 50))),
        ("forward", ("forward", "hang"), ("overhead", "hang"), ("sideways", "on_hip")),
        lean=(0, 15),
        bend=(0, 25),
    ),
    "bend": _Activity(
        0.06,
        (_Limb((-5, 12), (0, 18), (-5, 20), (0, 30)), _Limb((-5, 25), (0, 18), (-5, 20), (0, 45))),
        ("hang", "lap", ("hang", "forward")),
        bend=(35, 85),
    ),
    "squat": _Activity(
        0.04,
        (_SQUATTING, _SQUATTING),
        ("lap", "forward", ("lap", "to_face")),
        bend=(5, 35),
    ),
    "jump": _Activity(
        0.05,
        (_Limb((-15, 70), (5, 50), (0, 25), (5, 110)), _Limb((-15, 40), (5, 50), (0, 25), (5, 90))),
        ("wide_up", "overhead", "sideways", _SWING),
        lean=(-15, 20),
    ),
    "lie": _Activity(
        0.04,
        (_Limb((-8, 30), (0, 20), (-5, 25), (0, 60)), _Limb((-8, 30), (0, 20), (-5, 25), (0, 60))),
        ("hang", "overhead", "sideways", ("hang", "to_face"), "lap"),
        lean=(-105, -70),
    ),
}  # fmt: skip


def sample_angles(rng: np.random.Generator, activity: str | None = None) -> dict[str, np.ndarray]:
    """Joint angles of a person in an activity.

    Args:
        rng: The source of chance.
        activity: A key of `ACTIVITIES`; None draws one by its share.

    Returns:
        Degrees by joint: `"root"` as (yaw, pitch, roll), where yaw 0 faces a camera at the
        default `Camera.rotation` and pitch tips forward; `"spine"`, `"neck"` and, with a
        `left_` or `right_` before them, the joints of `LIMITS_DEG`, within its ranges.
    """
    if activity is None:
        shares = np.array([each.share for each in ACTIVITIES.values()])
        activity = list(ACTIVITIES)[rng.choice(len(shares), p=shares / shares.sum())]
    chosen = ACTIVITIES[activity]
    draw = rng.uniform
    lean, bend = draw(*chosen.lean), draw(*chosen.bend)
    if activity == "lie" and draw() < 0.4:
        lean = -lean  # on the face
    # The hips bend so that the trunk tips and the thighs do not; the spine takes a share.
    pelvis_bend = bend * draw(0.5, 0.85)
    angles = {
        "root": np.array([draw(-180, 180), lean + pelvis_bend, draw(-6, 6)]),
        "spine": np.array([bend - pelvis_bend + draw(-6, 12), draw(-12, 12), draw(-18, 18)]),
        "neck": np.array([draw(-22, 25) - 0.3 * bend, draw(-12, 12), draw(-45, 45)]),
    }
    sides = [side for side, _ in _SIDES]
    if draw() < 0.5:
        sides.reverse()
    arms = chosen.arms[rng.integers(len(chosen.arms))]
    pair = (arms, arms) if isinstance(arms, str) else arms
    for side, leg, arm in zip(sides, chosen.legs, (_ARMS[name] for name in pair), strict=True):
        angles |= {
            f"{side}_hip": np.array([draw(*leg.flexion), draw(*leg.abduction), draw(*leg.twist)])
            + (pelvis_bend, 0, 0),
            f"{side}_knee": np.array([draw(*leg.hinge)]),
            f"{side}_ankle": np.array([draw(-10, 25)]),
            f"{side}_shoulder": np.array(
                [draw(*arm.flexion), draw(*arm.abduction), draw(*arm.twist)]
            )
            + (0.8 * max(bend, 0), 0, 0),
            f"{side}_elbow": np.array([draw(*arm.hinge)]),
            f"{side}_wrist": np.array([draw(-25, 25)]),
        }
    for joint, limits in LIMITS_DEG.items():
        for name in (joint, f"left_{joint}", f"right_{joint}"):
            if name in angles:
                angles[name] = np.clip(angles[name], *np.array(limits, float).T)
    return angles


def _rotation(axis: str, degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    if axis == "y":
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def pose_body(body: Body, angles: dict[str, np.ndarray]) -> Pose:
    """Forward kinematics: the joints of `body` at `angles`, with the pelvis at the origin.

    Args:
        body: The proportions.
        angles: As `sample_angles` returns them, degrees.
    """
    yaw, pitch, roll = angles["root"]
    turns = {"pelvis": _rotation("y", yaw) @ _rotation("x", pitch) @ _rotation("z", roll)}

    def trunk(flexion: float, bending: float, twist: float) -> np.ndarray:
        return _rotation("y", twist) @ _rotation("z", -bending) @ _rotation("x", flexion)

    def ball(sign: float, flexion: float, abduction: float, twist: float) -> np.ndarray:
        return (
            _rotation("x", -flexion)
            @ _rotation("z", sign * abduction)
            @ _rotation("y", sign * twist)
        )

    half = trunk(*angles["spine"] / 2)
    turns["abdomen"] = turns["pelvis"] @ half
    turns["chest"] = turns["abdomen"] @ half
    turns["head"] = turns["chest"] @ trunk(*angles["neck"])
    for side, sign in _SIDES:
        for joint, parent, segment, turn in (
            ("hip", "pelvis", f"{side}_thigh", None),
            ("knee", f"{side}_thigh", f"{side}_shank", 1),
            ("ankle", f"{side}_shank", f"{side}_foot", 1),
            ("shoulder", "chest", f"{side}_upper_arm", None),
            ("elbow", f"{side}_upper_arm", f"{side}_forearm", -1),
            ("wrist", f"{side}_forearm", f"{side}_hand", -1),
        ):
            angle = angles[f"{side}_{joint}"]
            local = ball(sign, *angle) if turn is None else _rotation("x", turn * angle[0])
            turns[segment] = turns[parent] @ local
    joints = {"pelvis": np.zeros(3)}
    for joint, (parent, segment) in TREE.items():
        joints[joint] = joints[parent] + turns[segment] @ body.offsets[joint]
    return Pose(joints, turns)


def _pierces_trunk(body: Body, pose: Pose) -> bool:
    """Whether an elbow, wrist or hand is inside the chest, the belly or the head."""
    frame, centre = pose.rotations["abdomen"], pose.joints["torso"]
    half = np.array([0.095, 0.17, 0.075]) * body.height
    head = pose.joints["neck"] + pose.rotations["head"] @ (0, 0.06 * body.height, 0)
    for side, _ in _SIDES:
        for joint in ("elbow", "wrist", "hand"):
            point = pose.joints[f"{side}_{joint}"]
            if np.sum(((point - centre) @ frame / half) ** 2) < 1:
                return True
            if np.sum((point - head) ** 2) < (0.07 * body.height) ** 2:
                return True
    return False


def sample_pose(rng: np.random.Generator, body: Body, activity: str | None = None) -> Pose:
    """A pose of `body` with the pelvis at the origin, whose arms keep out of its trunk.

    Args:
        rng: The source of chance.
        body: The proportions, from `sample_body`.
        activity: A key of `ACTIVITIES`; None draws one by its share.
    """
    for _ in range(20):
        pose = pose_body(body, sample_angles(rng, activity))
        if not _pierces_trunk(body, pose):
            break
    return pose


# ------------------------------------------------------------------------------------------------
# Camera
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        focal_px: Focal length, pixels.
        centre_px: (2,) principal point (x, y), pixels.
        rotation: (3, 3) from world to camera axes. The default looks along the world's -z with
            the world's y up: a person with yaw 0 faces it.
        position: (3,) of the camera in the world, metres.
    """

    focal_px: float
    centre_px: np.ndarray
    rotation: np.ndarray
    position: np.ndarray

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World (..., 3) to camera (..., 3), metres."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points in camera axes (..., 3), metres, in front of it, to pixels (..., 2)."""
        return self.focal_px * points[..., :2] / points[..., 2:] + self.centre_px


def look(pitch_deg: float, roll_deg: float) -> np.ndarray:
    """(3, 3) `Camera.rotation` of a camera that looks down by `pitch_deg` and is rolled."""
    level = np.diag([1.0, -1.0, -1.0])
    return _rotation("z", roll_deg) @ _rotation("x", pitch_deg) @ level


def in_camera(camera: Camera, pose: Pose) -> Pose:
    """A pose in the world as the camera's axes have it."""
    return Pose(
        {name: camera.to_camera(point) for name, point in pose.joints.items()},
        {name: camera.rotation @ turn for name, turn in pose.rotations.items()},
    )


# ------------------------------------------------------------------------------------------------
# Clothes and body parts
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """A surface: two colours (2, 3) in 0..255 and the (N, N) share of the second, a pattern.

    The pattern's first axis runs along a part, `per_metre` cells a metre; its second, around it.
    """

    colours: np.ndarray
    pattern: np.ndarray
    per_metre: float = 60.0


@dataclass(frozen=True)
class Outfit:
    """What a person wears and looks like; a sleeve of 0.5 covers half of its segment."""

    skin: Material
    hair: Material
    shirt: Material
    trousers: Material
    shoes: Material
    upper_sleeve: float
    lower_sleeve: float
    upper_leg: float
    lower_leg: float
    haircut: str


@dataclass(frozen=True)
class _Part:
    """A round cone from `a` to `b` (3,), radii metres, in camera axes.

    `stretch`, where given, is (frame (3, 3), factors (3,)): the cone is stretched by the factors
    along the frame's columns. `rest` is the material beyond the share `split` of the axis.
    """

    a: np.ndarray
    b: np.ndarray
    radius_a: float
    radius_b: float
    material: Material
    stretch: tuple[np.ndarray, np.ndarray] | None = None
    split: float = 1.0
    rest: Material | None = None


def _plain(colour: np.ndarray) -> Material:
    return Material(np.stack([colour, colour]).astype(np.float32), np.zeros((1, 1), np.float32))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) in 0..255: any hue, often greyish, as clothes and walls are."""
    hue, value = rng.uniform(0, 6), 255 * rng.uniform(0.12, 1.0)
    saturation = rng.uniform(0, 0.9) * rng.uniform(0.3, 1.0)
    channel = (np.array([5.0, 3.0, 1.0]) + hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(channel, 4 - channel), 0, 1))


def _skin(rng: np.random.Generator) -> np.ndarray:
    tones = np.array([(245, 212, 185), (224, 172, 132), (160, 105, 72), (84, 54, 40)], float)
    position = rng.uniform(0, len(tones) - 1.001)
    low = int(position)
    tone = tones[low] + (tones[low + 1] - tones[low]) * (position - low)
    return np.clip(tone + rng.normal(0, 6, 3), 0, 255)


def _cloth(rng: np.random.Generator) -> Material:
    base = _colour(rng)
    second = _colour(rng) if rng.random() < 0.5 else base * rng.uniform(0.55, 0.8)
    size = 16
    kind = rng.choice(["plain", "rings", "stripes", "checks", "noise"], p=[0.4, 0.2, 0.1, 0.1, 0.2])
    band = (np.arange(size) // rng.integers(2, 6) % 2).astype(np.float32)
    pattern = {
        "plain": np.zeros((size, size)),
        "rings": np.tile(band[:, None], size),
        "stripes": np.tile(band, (size, 1)),
        "checks": (band[:, None] + band) / 2,
        "noise": rng.random((size, size)) * rng.uniform(0.3, 1),
    }[kind]
    return Material(
        np.stack([base, second]).astype(np.float32),
        pattern.astype(np.float32),
        rng.uniform(50, 110),
    )


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Clothes, skin and hair; the same on the left and on the right."""
    hair = np.array([(28, 22, 20), (72, 46, 28), (150, 110, 60), (215, 185, 120), (140, 138, 136)])
    short_sleeves, shorts = rng.random() < 0.5, rng.random() < 0.3
    sleeveless = short_sleeves and rng.random() < 0.25
    hairs = Material(
        (hair[rng.integers(len(hair))] * rng.uniform([[0.8], [0.6]], [[1.15], [0.8]])).astype(
            np.float32
        ),
        rng.random((16, 16)).astype(np.float32),
    )
    return Outfit(
        skin=_plain(_skin(rng)),
        hair=hairs,
        shirt=_cloth(rng),
        trousers=_cloth(rng),
        shoes=_plain(_colour(rng)),
        upper_sleeve=0.0 if sleeveless else rng.uniform(0.4, 0.9) if short_sleeves else 1.0,
        lower_sleeve=0.0 if short_sleeves else rng.uniform(0.6, 1.0),
        upper_leg=rng.uniform(0.45, 1.0) if shorts else 1.0,
        lower_leg=0.0 if shorts else rng.uniform(0.75, 1.0),
        haircut=str(rng.choice(["short", "long", "bald"], p=[0.55, 0.33, 0.12])),
    )


def _parts(body: Body, pose: Pose, outfit: Outfit) -> list[_Part]:
    """The parts of a person whose pose is in camera axes."""
    joints, turns = pose.joints, pose.rotations
    # Thickness grows with the height, a head's much less with the girth.
    size = body.height / 1.7
    thick = size * body.girth
    parts = []

    def at(joint: str, segment: str, offset: tuple[float, float, float]) -> np.ndarray:
        return joints[joint] + turns[segment] @ (np.array(offset) * size)

    # Trunk: pelvis, belly and chest are wider than deep; the shoulders round off the chest.
    wide = np.linalg.norm(joints["left_shoulder"] - joints["right_shoulder"]) / 2
    flat = np.array([1.0, 1.0, 0.68])
    waist = at("torso", "abdomen", (0, -0.02, 0))
    parts += [
        _Part(
            at("pelvis", "pelvis", (0, -0.02, -0.005)), at("pelvis", "pelvis", (0, 0.06, 0)),
            0.158 * thick, 0.145 * thick, outfit.trousers, (turns["pelvis"], flat),
        ),
        _Part(
            at("pelvis", "pelvis", (0, 0.075, 0)), waist,
            0.146 * thick, 0.138 * thick, outfit.shirt, (turns["abdomen"], flat),
        ),
        _Part(
            waist, at("thorax", "chest", (0, -0.13, 0.0)),
            0.138 * thick, 0.158 * thick, outfit.shirt, (turns["chest"], flat),
        ),
        _Part(
            at("thorax", "chest", (-0.62 * wide / size, -0.035, 0)),
            at("thorax", "chest", (0.62 * wide / size, -0.035, 0)),
            0.068 * thick, 0.068 * thick, outfit.shirt,
        ),
        _Part(
            at("thorax", "chest", (0, -0.02, 0)), at("neck", "head", (0, 0.03, 0.005)),
            0.056 * thick, 0.05 * size, outfit.skin,
        ),
    ]  # fmt: skip
    for side, _ in _SIDES:
        limbs = (
            # from, to, radii, cloth, its share of the segment
            ("shoulder", "elbow", 0.056, 0.043, outfit.shirt, outfit.upper_sleeve),
            ("elbow", "wrist", 0.043, 0.029, outfit.shirt, outfit.lower_sleeve),
            ("wrist", "hand", 0.03, 0.032, outfit.skin, 1.0),
            ("hip", "knee", 0.086, 0.058, outfit.trousers, outfit.upper_leg),
            ("knee", "ankle", 0.058, 0.038, outfit.trousers, outfit.lower_leg),
            ("ankle", "heel", 0.038, 0.036, outfit.shoes, 1.0),
            ("heel", "toe", 0.038, 0.032, outfit.shoes, 1.0),
        )
        for start, end, radius_a, radius_b, cloth, share in limbs:
            parts.append(
                _Part(
                    joints[f"{side}_{start}"], joints[f"{side}_{end}"],
                    radius_a * thick, radius_b * thick, cloth, split=share, rest=outfit.skin,
                )
            )  # fmt: skip

    # The head: an ellipsoid, with what tells its front from its back. Lengths from here on are in
    # half heads, so that the face fits the skull.
    frame = turns["head"]
    half = float(np.linalg.norm(joints["head_top"] - joints["neck"])) / 2
    middle = (joints["head_top"] + joints["neck"]) / 2 + frame @ (0, 0.045 * half, 0.09 * half)
    skull = np.array([0.76, 1.08, 0.9])

    def ball(centre: np.ndarray, radii: np.ndarray | tuple, material: Material) -> None:
        stretch = (frame, np.asarray(radii) * half)
        parts.append(_Part(centre, centre, 1.0, 1.0, material, stretch))

    def bar(joint: str, left: tuple, right: tuple, radius: float, material: Material) -> None:
        ends = (joints[joint] + frame @ np.array(end) * half for end in (left, right))
        parts.append(_Part(*ends, radius * half, radius * half, material))

    ball(middle, skull, outfit.skin)
    if outfit.haircut != "bald":
        ball(middle + frame @ (0, 0.26 * half, -0.24 * half), skull * 1.06, outfit.hair)
    if outfit.haircut == "long":
        nape = at("thorax", "chest", (0, -0.03, -0.085))
        crown = middle + frame @ (0, -0.1 * half, -0.5 * half)
        thin = (frame, np.array([1.0, 1.0, 0.6]))
        parts.append(_Part(crown, nape, 0.8 * half, 0.68 * half, outfit.hair, thin))
    dark, white, red = (_plain(np.array(c)) for c in ((22, 18, 20), (240, 240, 240), (150, 60, 60)))
    bar("nose", (0, 0.25, -0.15), (0, -0.03, -0.04), 0.12, outfit.skin)
    bar("nose", (-0.2, -0.4, -0.15), (0.2, -0.4, -0.15), 0.075, red)
    for side, sign in _SIDES:
        eye = joints[f"{side}_eye"]
        ball(eye - frame @ (0, 0, 0.04 * half), (0.21, 0.16, 0.13), white)
        ball(eye + frame @ (0, 0, 0.05 * half), (0.12, 0.12, 0.08), dark)
        bar(f"{side}_eye", (-0.16, 0.27, -0.03), (0.16, 0.27, -0.03), 0.055, outfit.hair)
        ear = joints[f"{side}_ear"] + frame @ (sign * 0.05 * half, 0, 0)
        ball(ear, (0.14, 0.3, 0.2), outfit.skin)
    return parts


# ------------------------------------------------------------------------------------------------
# Rendering
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One person drawn alone.

    Attributes:
        depth: (H, W) float32, metres along the view; infinite where the person is not.
        colour: (H, W, 3) uint8; undefined where the person is not.
    """

    depth: np.ndarray
    colour: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the silhouette."""
        return np.isfinite(self.depth)


@dataclass(frozen=True)
class Light:
    """A lamp: `direction` (3,) unit vector towards it, in camera axes, and the share that is
    there without it."""

    direction: np.ndarray
    ambient: float


def _draw_part(
    part: _Part, light: Light, slopes: tuple[np.ndarray, np.ndarray], layer: Layer, camera: Camera
) -> None:
    """Draws a part into a layer where it is nearer than what is there.

    A ray is depth * (x, y, 1), with (x, y) its slopes, so that the unknown of each quadratic is
    the depth itself. The envelope of the spheres along the axis, centre a + s (b - a) and radius
    r_a + s (r_b - r_a), is a cone where 0 < s < 1 and a sphere's cap beyond either end.
    """
    reach = max(part.radius_a, part.radius_b)
    to_round = np.eye(3)
    if part.stretch is not None:
        frame, factors = part.stretch
        to_round, reach = frame.T / factors[:, None], reach * factors.max()
    near = float(min(part.a[2], part.b[2]) - reach)
    if near < 0.05:
        return
    ends = camera.project(np.array([part.a, part.b]))
    margin = 1.15 * camera.focal_px * reach / near + 1
    xs, ys = slopes
    low = np.maximum(np.floor(ends.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(0) + margin), (len(xs), len(ys))).astype(int)
    if (high <= low).any():
        return
    x, y = xs[None, low[0] : high[0]], ys[low[1] : high[1], None]

    def along(vector: np.ndarray) -> np.ndarray:
        """Dot product of the rays, made round, and a vector of the round space."""
        gx, gy, gz = (to_round.T @ vector).tolist()
        return (gx * x + gz) + gy * y

    metric = to_round.T @ to_round
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = metric.tolist()
    squared = (xx * x * x + 2 * xz * x + zz) + (yy * y * y + 2 * yz * y)
    if part.stretch is not None:
        squared += (2 * xy * x) * y
    a, b = to_round @ part.a, to_round @ part.b
    axis = b - a
    shrink = part.radius_a - part.radius_b
    inner = float(axis @ axis - shrink**2)

    # Discriminants everywhere, roots only where the part is and nothing nearer has been drawn.
    along_a = along(a)
    root_a = along_a * along_a - squared * float(a @ a - part.radius_a**2)
    hit = root_a > 0
    if inner > 1e-8:
        along_axis = along(axis)
        along_b = along_a + along_axis
        root_b = along_b * along_b - squared * float(b @ b - part.radius_b**2)
        offset = float(a @ axis + shrink * part.radius_a)
        k2 = inner * squared - along_axis * along_axis
        k1 = inner * along_a - offset * along_axis
        k0 = inner * float(a @ a - part.radius_a**2) - offset**2
        root_cone = k1 * k1 - k0 * k2
        hit |= (root_b > 0) | (root_cone > 0)
    hit &= layer.depth[low[1] : high[1], low[0] : high[0]] > near
    rows, columns = np.nonzero(hit)
    if not len(rows):
        return

    def sphere(root: np.ndarray, product: np.ndarray) -> np.ndarray:
        root, product = root[hit], product[hit]
        return np.where(
            root > 0, (product - np.sqrt(np.maximum(root, 0))) / squared_hit, np.float32(np.inf)
        )

    squared_hit = squared[hit]
    depth = sphere(root_a, along_a)
    share = np.zeros_like(depth)
    if inner > 1e-8:
        depth_b = sphere(root_b, along_b)
        share[depth_b < depth] = 1
        depth = np.minimum(depth, depth_b)
        root, k2 = root_cone[hit], k2[hit]
        on_cone = (root > 0) & (k2 > 1e-9)
        cone = (k1[hit] - np.sqrt(np.maximum(root, 0))) / np.where(on_cone, k2, 1)
        cone_share = (cone * along_axis[hit] - offset) / inner
        on_cone &= (cone_share > 0) & (cone_share < 1)
        depth = np.where(on_cone, cone, depth)
        share = np.where(on_cone, cone_share, share)

    nearer = depth < layer.depth[rows + low[1], columns + low[0]]
    depth, share, rows, columns = depth[nearer], share[nearer], rows[nearer], columns[nearer]
    if not len(rows):
        return
    rays = np.stack([x[0, columns], y[rows, 0], np.ones_like(depth)])
    normal = (
        metric.astype(np.float32) @ (rays * depth)
        - (to_round.T @ a).astype(np.float32)[:, None]
        - (to_round.T @ axis).astype(np.float32)[:, None] * share
    )
    normal /= np.sqrt((normal * normal).sum(0)) + 1e-9
    lit = np.maximum(light.direction.astype(np.float32) @ normal, 0)
    # Darker towards the outline: limbs stand out from a trunk of the same colour.
    shade = (light.ambient + (1 - light.ambient) * lit) * (0.55 + 0.45 * np.abs(normal[2]))

    length = float(np.linalg.norm(part.b - part.a)) or 2 * reach

    def paint(material: Material) -> np.ndarray:
        cells = len(material.pattern)
        first, second = material.colours
        if cells == 1:
            return np.broadcast_to(first, (len(depth), 3))
        u = (share * (length * material.per_metre)).astype(int) % cells
        v = ((normal[0] + 1) * (reach * material.per_metre * 1.5)).astype(int) % cells
        return first + (second - first) * material.pattern[u, v][:, None]

    colour = paint(part.material)
    if part.rest is not None and part.split < 1:
        colour = np.where((share < part.split)[:, None], colour, paint(part.rest))
    rows, columns = rows + low[1], columns + low[0]
    layer.depth[rows, columns] = depth
    layer.colour[rows, columns] = np.minimum(colour * shade[:, None] * 1.2, 255)


def render(
    body: Body, pose: Pose, outfit: Outfit, camera: Camera, light: Light, size: tuple[int, int]
) -> Layer:
    """Draws one person.

    Args:
        body: The proportions.
        pose: The pose in camera axes, from `in_camera`.
        outfit: Clothes, skin and hair.
        camera: Its focal length and centre in the pixels of `size`.
        light: The lamp.
        size: (height, width) of the layer, pixels.
    """
    height, width = size
    xs = ((np.arange(width) - camera.centre_px[0]) / camera.focal_px).astype(np.float32)
    ys = ((np.arange(height) - camera.centre_px[1]) / camera.focal_px).astype(np.float32)
    layer = Layer(np.full(size, np.inf, np.float32), np.zeros((height, width, 3), np.uint8))
    # Nearest first: what it hides needs no colour.
    for part in sorted(_parts(body, pose, outfit), key=lambda part: part.a[2] + part.b[2]):
        _draw_part(part, light, (xs, ys), layer, camera)
    return layer


# A joint counts as seen where the surface in front of it is no farther than its limb is thick.
_SEEN_WITHIN = {
    "nose": 0.035, "eye": 0.03, "ear": 0.045, "shoulder": 0.11, "elbow": 0.075, "wrist": 0.06,
    "hip": 0.15, "knee": 0.09, "ankle": 0.07,
}  # fmt: skip
_TOLERANCE = np.array([_SEEN_WITHIN[name.split("_")[-1]] for name in COCO17.joints])


# ------------------------------------------------------------------------------------------------
# Scenes
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One finished picture.

    Attributes:
        image: (H, W, 3) uint8.
        keypoints: (P, 17, 3) of x, y in pixels and COCO's visibility 0, 1 or 2.
        masks: (P, sH, sW) bool silhouettes before occlusion, s = 2 samples a pixel each way.
        shown: (P,) share of each silhouette that nothing hides.
    """

    image: np.ndarray
    keypoints: np.ndarray
    masks: np.ndarray
    shown: np.ndarray


def _fill(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in np.clip(colour, 0, 255))
    return red, green, blue


def _bent_bar(rng: np.random.Generator, start: np.ndarray, length: float) -> list[tuple]:
    angle = rng.uniform(0, 2 * math.pi)
    points = [start]
    for _ in range(2):
        points.append(points[-1] + length / 2 * np.array([math.cos(angle), math.sin(angle)]))
        angle += rng.uniform(-1.5, 1.5)
    return [tuple(point) for point in points]


def _thick_line(draw: ImageDraw.ImageDraw, points: list[tuple], fill, width: int) -> None:
    draw.line(points, fill=fill, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)


def _background(
    rng: np.random.Generator, size: tuple[int, int], colours: list[np.ndarray]
) -> Image.Image:
    """A smooth field of colours and noise, with clutter, some of it in the people's colours."""
    height, width = size
    side = max(size)
    coarse = (width // _SUPERSAMPLING, height // _SUPERSAMPLING)
    grid = np.stack([_colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    field = Image.fromarray(grid.astype(np.uint8)).resize(coarse, Image.BILINEAR)
    cells = int(rng.integers(4, 60))
    noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    field = Image.blend(field, noise.resize(coarse, Image.BILINEAR), rng.uniform(0, 0.25))
    field = field.resize((width, height), Image.NEAREST)
    draw = ImageDraw.Draw(field)
    for _ in range(rng.integers(2, 14)):
        kind = rng.choice(["box", "ellipse", "line", "bar"], p=[0.3, 0.2, 0.2, 0.3])
        alike = rng.random() < 0.4
        fill = _fill(
            colours[rng.integers(len(colours))] * rng.uniform(0.7, 1.1) if alike else _colour(rng)
        )
        centre = rng.uniform(0, 1, 2) * (width, height)
        half = rng.uniform(0.02, 0.25, 2) * side
        corners = (*(centre - half), *(centre + half))
        if kind == "box":
            draw.rectangle(corners, fill=fill)
        elif kind == "ellipse":
            draw.ellipse(corners, fill=fill)
        elif kind == "line":
            end = rng.uniform(0, 1, 2) * (width, height)
            draw.line([tuple(centre), tuple(end)], fill=fill, width=int(rng.integers(1, 8)))
        else:
            thickness = int(side * rng.uniform(0.02, 0.07))
            _thick_line(draw, _bent_bar(rng, centre, side * rng.uniform(0.1, 0.5)), fill, thickness)
    return field


def _occlude(
    rng: np.random.Generator,
    picture: Image.Image,
    mask: Image.Image,
    box_xyxy: np.ndarray,
    colours: list[np.ndarray],
) -> None:
    """Draws a thing in front of the box into the picture, and where it is into the mask."""
    canvases = (ImageDraw.Draw(picture), ImageDraw.Draw(mask))
    extent = box_xyxy[2:] - box_xyxy[:2]
    centre = box_xyxy[:2] + extent * rng.uniform(0.05, 0.95, 2)
    tall = float(extent.max())
    base = colours[rng.integers(len(colours))] if rng.random() < 0.4 else _colour(rng)
    kind = rng.choice(["box", "bar", "foliage"])
    if kind == "box":
        half = tall * rng.uniform(0.06, 0.24, 2)
        corners = [*(centre - half), *(centre + half)]
        for canvas, fill in zip(canvases, (_fill(base), 255), strict=True):
            canvas.rectangle(corners, fill=fill)
        corners[3] = centre[1] - half[1] * 0.7  # a lighter top, as a box has
        canvases[0].rectangle(corners, fill=_fill(base * 1.25 + 10))
    elif kind == "bar":
        points = _bent_bar(rng, centre, tall * rng.uniform(0.5, 1.5))
        width = int(max(3, tall * rng.uniform(0.03, 0.1)))
        for canvas, fill in zip(canvases, (_fill(base), 255), strict=True):
            _thick_line(canvas, points, fill, width)
    else:
        green = np.array([60.0, 110.0, 45.0]) * rng.uniform(0.6, 1.5)
        for _ in range(rng.integers(15, 45)):
            leaf = centre + rng.normal(0, 0.11 * tall, 2)
            turn, length = rng.uniform(0, math.pi), tall * rng.uniform(0.02, 0.07)
            along = length * np.array([math.cos(turn), math.sin(turn)])
            across = np.array([-along[1], along[0]]) * 0.4
            points = [tuple(leaf + way) for way in (-along, -across, along, across)]
            fill = _fill(green * rng.uniform(0.6, 1.3))
            canvases[0].polygon(points, fill=fill)
            canvases[1].polygon(points, fill=255)


def _place(
    rng: np.random.Generator, pose: Pose, camera: Camera, size: tuple[int, int], people: int
) -> Pose:
    """Puts a pose, which is around the world's origin, in front of the camera, in its axes."""
    height, width = size
    turned = in_camera(camera, pose)
    points = np.stack(list(turned.joints.values()))
    low, high = points.min(0) - 0.08, points.max(0) + 0.08
    extent = high - low
    # The share of the image that the person would fill; above 1 it is cut.
    fill = rng.uniform(0.5, 0.98) if people == 1 else rng.uniform(0.4, 0.8)
    cut = rng.random() < 0.22
    if cut:
        fill *= rng.uniform(1.0, 1.7)
    zoom = fill * min(height / extent[1], width / extent[0])
    depth = max(camera.focal_px / zoom, extent[2] / 2 + 0.5)
    zoom = camera.focal_px / depth
    room = np.array([width, height]) - extent[:2] * zoom
    shift = rng.uniform(-0.5, 0.5, 2) * np.maximum(room, 0)
    if cut:
        shift += rng.uniform(-0.4, 0.4, 2) * np.minimum(extent[:2] * zoom, (width, height))
    centre = np.array([width - 1, height - 1]) / 2 + shift
    target = np.append((centre - camera.centre_px) / camera.focal_px, 1) * depth
    offset = target - (low + high) / 2
    return Pose({name: point + offset for name, point in turned.joints.items()}, turned.rotations)


def _try_scene(rng: np.random.Generator, size: tuple[int, int], people: int) -> Scene:
    height, width = size
    fine = (height * _SUPERSAMPLING, width * _SUPERSAMPLING)
    focal = max(size) * rng.uniform(1.4, 3.5)
    middle = (np.array([width, height]) - 1) / 2
    rotation = look(rng.uniform(-8, 25), rng.normal(0, 4))
    camera = Camera(focal, middle, rotation, np.zeros(3))
    # Sample i of s a pixel is centred at (i + 0.5) / s - 0.5 pixels.
    fine_camera = Camera(
        focal * _SUPERSAMPLING,
        (middle + 0.5) * _SUPERSAMPLING - 0.5,
        rotation,
        np.zeros(3),
    )
    towards = np.array([rng.uniform(-0.8, 0.8), -rng.uniform(0.3, 1), -rng.uniform(0.4, 1)])
    light = Light(towards / np.linalg.norm(towards), rng.uniform(0.35, 0.65))

    poses, layers, colours = [], [], []
    for _ in range(people):
        body, outfit = sample_body(rng), sample_outfit(rng)
        pose = _place(rng, sample_pose(rng, body), camera, size, people)
        poses.append(pose)
        layers.append(render(body, pose, outfit, fine_camera, light, fine))
        worn = (outfit.skin, outfit.shirt, outfit.trousers)
        colours += [material.colours[0] for material in worn]

    picture, hiding = _background(rng, fine, colours), Image.new("L", fine[::-1])
    nearest = np.full(fine, np.inf, np.float32)
    owner = np.full(fine, -1, np.int8)
    for index, layer in enumerate(layers):
        front = layer.depth < nearest
        np.copyto(nearest, layer.depth, where=front)
        np.copyto(owner, index, where=front)
        picture.paste(Image.fromarray(layer.colour), mask=Image.fromarray(front))
    masks = np.stack([layer.mask for layer in layers])
    for mask in masks:
        if rng.random() < 0.3 and mask.any():
            _occlude(rng, picture, hiding, _box_xyxy(mask), colours)
    owner[np.asarray(hiding) > 0] = -1

    keypoints = np.zeros((people, len(COCO17.joints), 3))
    shown = np.zeros(people)
    for index, (pose, layer) in enumerate(zip(poses, layers, strict=True)):
        joints = pose.coco()
        xy = camera.project(joints)
        inside = ((xy >= 0) & (xy <= (width - 1, height - 1))).all(1)
        columns, rows = np.rint((xy[inside].T + 0.5) * _SUPERSAMPLING - 0.5).astype(int)
        surface = layer.depth[rows, columns]
        seen = (owner[rows, columns] == index) & (joints[inside, 2] - surface < _TOLERANCE[inside])
        keypoints[index, inside, :2] = xy[inside]
        keypoints[index, inside, 2] = 1 + seen
        shown[index] = (owner == index).sum() / max(masks[index].sum(), 1)

    small = picture.reduce(_SUPERSAMPLING)  # the mean of each pixel's samples
    grain = rng.standard_normal((height, width, 3), np.float32) * rng.uniform(0, 9)
    pixels = np.asarray(small, np.float32) * rng.uniform(0.8, 1.1) + rng.uniform(-12, 18) + grain
    return Scene(np.clip(pixels, 0, 255).astype(np.uint8), keypoints, masks, shown)


def sample_scene(rng: np.random.Generator, size: tuple[int, int], people: int) -> Scene:
    """A picture of people, each with at least 4 joints in the image and a third of it shown.

    Args:
        rng: The source of chance.
        size: (height, width), pixels.
        people: How many.
    """
    while True:
        scene = _try_scene(rng, size, people)
        labelled = (scene.keypoints[..., 2] > 0).sum(1)
        large = scene.masks.mean((1, 2)) > 0.01
        if (labelled >= 4).all() and (scene.shown > 0.33).all() and large.all():
            return scene


# ------------------------------------------------------------------------------------------------
# The COCO dataset
# ------------------------------------------------------------------------------------------------

_SPLITS = ("train2017", "val2017")
_LICENSE_ID = 1


def _box_xyxy(mask: np.ndarray) -> np.ndarray:
    """(4,) edges of a mask that is not empty, in its own samples."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def _outline(mask: np.ndarray) -> list[float]:
    """The outermost edges of a mask row by row as one polygon x, y, x, y, ..., pixels."""
    rows = np.nonzero(mask.any(1))[0]
    rows = np.unique(np.append(rows[::8], rows[-1] + 1))
    within = mask[np.minimum(rows, len(mask) - 1)]
    within[-1] = mask[rows[-1] - 1]
    left = within.argmax(1)
    right = mask.shape[1] - within[:, ::-1].argmax(1)
    filled = within.any(1)
    points = np.concatenate(
        [
            np.stack([left, rows], 1)[filled],
            np.stack([right, rows], 1)[filled][::-1],
        ]
    )
    return (points / _SUPERSAMPLING).ravel().tolist()


def _image_id(split: str, index: int) -> int:
    """COCO's train and val share no ids; neither do these."""
    return index + 1 + (1_000_000 if split == "val2017" else 0)


def _write_image(job: tuple[Path, str, int, int, int, tuple[int, int]]) -> list[dict]:
    """Renders one image into the folder; returns its annotations, without their ids.

    What is drawn depends on (seed, split, index) alone, so any process may draw it.
    """
    folder, split, index, people, seed, size = job
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    scene = sample_scene(rng, size, people)
    path = folder / split / f"{_image_id(split, index):012d}.jpg"
    Image.fromarray(scene.image).save(path, quality=90)
    annotations = []
    for mask, keypoints in zip(scene.masks, scene.keypoints, strict=True):
        x0, y0, x1, y1 = (_box_xyxy(mask) / _SUPERSAMPLING).tolist()
        annotations.append(
            {
                "image_id": _image_id(split, index),
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()) / _SUPERSAMPLING**2,
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "keypoints": [
                    value
                    for x, y, v in keypoints.tolist()
                    for value in (round(x, 2), round(y, 2), int(v))
                ],
                "segmentation": [_outline(mask)],
            }
        )
    return annotations


def _detections(
    rng: np.random.Generator, images: list[dict], annotations: list[dict]
) -> list[dict]:
    """What a person detector might have found, in COCO's result format.

    Boxes are off by some percent; a few people are missed, a few found twice, and about one
    image in six has a false positive. Scores are higher for people than for what is none.
    """
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    found = []
    for image in images:
        width, height = image["width"], image["height"]
        boxes: list[tuple[np.ndarray, float]] = []
        for annotation in by_image[image["id"]]:
            box = np.array(annotation["bbox"])
            hits = rng.choice(3, p=[0.03, 0.9, 0.07])
            for again in range(hits):
                spread = 0.04 * (1 + 2 * again)
                extent = box[2:] * np.exp(rng.normal(0, spread, 2))
                centre = box[:2] + box[2:] * (0.5 + rng.normal(0, spread, 2))
                score = 1 - rng.beta(1.2, 6) if again == 0 else rng.uniform(0.05, 0.6)
                boxes.append((np.concatenate([centre - extent / 2, centre + extent / 2]), score))
        if rng.random() < 0.17:
            low = rng.uniform(0, 0.7, 2) * (width, height)
            extent = rng.uniform(0.1, 0.5, 2) * (width, height)
            boxes.append((np.concatenate([low, low + extent]), rng.uniform(0.05, 0.7)))
        for box, score in boxes:
            x0, x1 = np.clip(box[[0, 2]], 0, width)
            y0, y1 = np.clip(box[[1, 3]], 0, height)
            found.append(
                {
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": [round(float(value), 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(float(score), 5),
                }
            )
    return found


def _crowd_sizes(rng: np.random.Generator, people: int) -> list[int]:
    """1 to 3 people an image, mostly one, `people` in all."""
    sizes = []
    while people > 0:
        sizes.append(min(people, int(rng.choice([1, 2, 3], p=[0.78, 0.16, 0.06]))))
        people -= sizes[-1]
    return sizes


def _write_json(path: Path, content: dict | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_dataset(folder: Path, people: dict[str, int], seed: int, size: tuple, workers: int):
    height, width = size
    crowds = {
        split: _crowd_sizes(np.random.default_rng([seed, 2, number]), people[split])
        for number, split in enumerate(_SPLITS)
    }
    jobs = [
        (folder, split, index, count, seed, size)
        for split in _SPLITS
        for index, count in enumerate(crowds[split])
    ]
    for split in _SPLITS:
        (folder / split).mkdir(parents=True)
    written = iter(_run(jobs, workers))
    for number, split in enumerate(_SPLITS):
        annotations = [each for _ in crowds[split] for each in next(written)]
        for index, annotation in enumerate(annotations):
            annotation["id"] = _image_id(split, index)
        images = [
            {
                "id": _image_id(split, index),
                "file_name": f"{_image_id(split, index):012d}.jpg",
                "width": width,
                "height": height,
                "license": _LICENSE_ID,
            }
            for index in range(len(crowds[split]))
        ]
        content = {
            "info": {
                "description": f"Rendered people, {split}, rle_tf.data.synthetic",
                "version": str(RENDERER_VERSION),
            },
            "licenses": [
                {
                    "id": _LICENSE_ID,
                    "name": "Apache License 2.0",
                    "url": "https://www.apache.org/licenses/LICENSE-2.0",
                }
            ],
            "images": images,
            "annotations": annotations,
            "categories": [
                {
                    "id": 1,
                    "name": "person",
                    "supercategory": "person",
                    "keypoints": list(COCO17.joints),
                    "skeleton": [[first + 1, second + 1] for first, second in COCO17.bones],
                }
            ],
        }
        _write_json(folder / "annotations" / f"person_keypoints_{split}.json", content)
        if split == "val2017":
            rng = np.random.default_rng([seed, 3, number])
            _write_json(
                folder / "detections" / f"person_detections_{split}.json",
                _detections(rng, images, annotations),
            )


def _run(jobs: list[tuple], workers: int) -> Iterator[list[dict]]:
    if workers == 1:
        yield from map(_write_image, jobs)
        return
    # Spawned, not forked: TensorFlow's threads, if the caller has any, do not survive a fork.
    # Workers leave Ctrl-C to this process, which then gives up the jobs that have not begun.
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as executor:
        yield from executor.map(_write_image, jobs, chunksize=8)


def _is_written(root: Path, manifest: dict) -> bool:
    """Whether root holds this very dataset; False where it is absent or empty.

    Raises:
        DataError: It holds anything else.
    """
    advice = "choose another folder, or empty this one"
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(
            f"{root}: found a file, expected a folder or nothing; choose another folder"
        )
    names = sorted(path.name for path in root.iterdir())
    if not names:
        return False
    if MANIFEST not in names:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise DataError(
            f"{root}: found {listed} but no {MANIFEST}, expected an empty or absent folder to "
            f"write a synthetic dataset into; {advice}"
        )
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{root / MANIFEST}: found text that is not JSON ({error}), expected the manifest of "
            f"a synthetic dataset; {advice}"
        ) from error
    if found != manifest:
        raise DataError(
            f"{root / MANIFEST}: found a synthetic dataset of {json.dumps(found)}, expected "
            f"{json.dumps(manifest)}; {advice}"
        )
    return True


def write_synthetic_coco(
    root: Path,
    *,
    train_people: int,
    val_people: int,
    seed: int,
    image_size: tuple[int, int] = (160, 160),
    workers: int | None = None,
) -> None:
    """Writes rendered people as a COCO keypoints dataset, with detections for its val split.

    The folder then holds `train2017/` and `val2017/` (JPEG), `annotations/` with
    `person_keypoints_train2017.json` and `..._val2017.json`, `detections/` with
    `person_detections_val2017.json`, and `synthetic.json`, which says how it was made. The same
    arguments give the same bytes, whatever the number of workers. A folder that already holds
    this dataset is left as it is. Nothing stands at `root` before all of it is written.

    Large datasets are rendered in spawned processes: as always with those, a script calls this
    under `if __name__ == "__main__":`.

    Args:
        root: The dataset's folder: absent, empty, or written with the same arguments.
        train_people: People in the train split, at least 1; 1 to 3 an image.
        val_people: The same for the val split.
        seed: Not negative.
        image_size: (height, width) of each image, pixels, each at least 64.
        workers: Processes to render in; None takes one a core, or none beside this one where
            the images are few.

    Raises:
        ConfigError: An argument is outside its range.
        DataError: `root` is a file or holds something else.
    """
    for name, value, least in (
        ("train_people", train_people, 1),
        ("val_people", val_people, 1),
        ("seed", seed, 0),
        ("image_size[0]", image_size[0], 64),
        ("image_size[1]", image_size[1], 64),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if value < least:
            raise ConfigError(f"write_synthetic_coco: {name} is {value}, expected at least {least}")
    root = Path(root).resolve()
    manifest = {
        "renderer": RENDERER_VERSION,
        "train_people": train_people,
        "val_people": val_people,
        "seed": seed,
        "image_size": list(image_size),
    }
    if _is_written(root, manifest):
        return
    if workers is None:
        enough = train_people + val_people >= _MIN_IMAGES_FOR_WORKERS
        workers = len(os.sched_getaffinity(0)) if enough else 1
    partial = root.parent / f".{root.name}.{os.getpid()}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        people = dict(zip(_SPLITS, (train_people, val_people), strict=True))
        _write_dataset(partial, people, seed, tuple(image_size), workers)
        _write_json(partial / MANIFEST, manifest)
        if _is_written(root, manifest):  # by another process, meanwhile
            return
        if root.exists():
            root.rmdir()
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
