"""Articulated bodies, their poses, and the camera that looks at them.

A body is a kinematic tree in three dimensions, metres; a pose turns its joints within human
limits.

Frames of reference. World and body: x to the person's left, y up, z forward. Camera: x right,
y down, z along the view. Pixels: the centre of the top left pixel is (0, 0).
"""

import math
from dataclasses import dataclass

import numpy as np

from rle_tf.skeletons import COCO17

SIDES = (("left", 1.0), ("right", -1.0))

# joint: (parent joint, segment whose rotation carries the bone from the parent to the joint).
TREE: dict[str, tuple[str, str]] = {
    "torso": ("pelvis", "abdomen"),
    "thorax": ("torso", "chest"),
    "neck": ("thorax", "head"),
    "head_top": ("neck", "head"),
    "nose": ("neck", "head"),
}
for _side, _ in SIDES:
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
            for side, sign in SIDES:
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
_SWING = ("swing_back", "swing_forward")  # the arm swings against the leg of its side
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
    sides = [side for side, _ in SIDES]
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


def rotation(axis: str, degrees: float) -> np.ndarray:
    """(3, 3) right-handed rotation about `"x"`, `"y"` or `"z"`."""
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
    turns = {"pelvis": rotation("y", yaw) @ rotation("x", pitch) @ rotation("z", roll)}

    def trunk(flexion: float, bending: float, twist: float) -> np.ndarray:
        return rotation("y", twist) @ rotation("z", -bending) @ rotation("x", flexion)

    def ball(sign: float, flexion: float, abduction: float, twist: float) -> np.ndarray:
        return (
            rotation("x", -flexion) @ rotation("z", sign * abduction) @ rotation("y", sign * twist)
        )

    half = trunk(*angles["spine"] / 2)
    turns["abdomen"] = turns["pelvis"] @ half
    turns["chest"] = turns["abdomen"] @ half
    turns["head"] = turns["chest"] @ trunk(*angles["neck"])
    for side, sign in SIDES:
        for joint, parent, segment, turn in (
            ("hip", "pelvis", f"{side}_thigh", None),
            ("knee", f"{side}_thigh", f"{side}_shank", 1),
            ("ankle", f"{side}_shank", f"{side}_foot", 1),
            ("shoulder", "chest", f"{side}_upper_arm", None),
            ("elbow", f"{side}_upper_arm", f"{side}_forearm", -1),
            ("wrist", f"{side}_forearm", f"{side}_hand", -1),
        ):
            angle = angles[f"{side}_{joint}"]
            local = ball(sign, *angle) if turn is None else rotation("x", turn * angle[0])
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
    for side, _ in SIDES:
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
    return rotation("z", roll_deg) @ rotation("x", pitch_deg) @ level


def in_camera(camera: Camera, pose: Pose) -> Pose:
    """A pose in the world as the camera's axes have it."""
    return Pose(
        {name: camera.to_camera(point) for name, point in pose.joints.items()},
        {name: camera.rotation @ turn for name, turn in pose.rotations.items()},
    )
