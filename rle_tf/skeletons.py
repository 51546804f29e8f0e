"""Skeletons: the joints of a body as datasets name and order them. Data only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """Names and relations of K joints.

    Attributes:
        name: How configs and files refer to it.
        joints: K joint names, in the order of every array's joint axis.
        flip_pairs: Pairs of joint indices that a mirrored image exchanges.
        bones: Pairs of joint indices joined by a line in drawings.
        upper_body: Indices of the joints above the hips, for half-body augmentation.
        oks_sigmas: K per-joint constants of the object keypoint similarity, in units of the
            square root of the person's area (COCO: measured spread of human annotators; neck and
            head top: those of CrowdPose's evaluation code); empty where none are published.
    """

    name: str
    joints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    bones: tuple[tuple[int, int], ...]
    upper_body: tuple[int, ...]
    oks_sigmas: tuple[float, ...] = ()

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """K indices: joint i of a mirrored person is joint `flip_permutation[i]` of the person."""
        permutation = list(range(len(self.joints)))
        for left, right in self.flip_pairs:
            permutation[left], permutation[right] = right, left
        return tuple(permutation)

    @property
    def root(self) -> int | None:
        """Index of the joint that depths are relative to, the pelvis; None where there is none."""
        return self.joints.index("pelvis") if "pelvis" in self.joints else None

    def side(self, joint: int) -> str:
        """`"left"`, `"right"` or `"middle"`: the side of the body that a joint index is on."""
        prefix = self.joints[joint].split("_")[0]
        return prefix if prefix in ("left", "right") else "middle"


COCO17 = Skeleton(
    name="coco17",
    joints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
        "left_wrist", "right_wrist", "left_hip", "right_hip",
        "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    bones=(
        (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
        (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16),
    ),
    upper_body=tuple(range(11)),
    oks_sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip

LSP14 = Skeleton(
    name="lsp14",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
        "left_wrist", "neck", "head_top",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    bones=(
        (0, 1), (1, 2), (5, 4), (4, 3), (2, 3), (6, 7), (7, 8), (11, 10), (10, 9),
        (8, 12), (9, 12), (12, 13), (2, 8), (3, 9),
    ),
    upper_body=(6, 7, 8, 9, 10, 11, 12, 13),
    oks_sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062,
        0.079, 0.079,
    ),
)  # fmt: skip

MPII16 = Skeleton(
    name="mpii16",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "pelvis", "thorax", "upper_neck", "head_top", "right_wrist", "right_elbow",
        "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    bones=(
        (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9),
        (10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15),
    ),
    upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15),
)  # fmt: skip

H36M18 = Skeleton(
    name="h36m18",
    joints=(
        "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee",
        "left_ankle", "torso", "neck", "nose", "head_top", "left_shoulder", "left_elbow",
        "left_wrist", "right_shoulder", "right_elbow", "right_wrist", "thorax",
    ),
    flip_pairs=((1, 4), (2, 5), (3, 6), (14, 11), (15, 12), (16, 13)),
    bones=(
        (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 17), (17, 8), (8, 9),
        (9, 10), (17, 11), (11, 12), (12, 13), (17, 14), (14, 15), (15, 16),
    ),
    upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17),
)  # fmt: skip

# COCO's joints and the two that Leeds Sports Pose, MPII and Human3.6M have beside them: what one
# model learns from all of these.
PERSON19 = Skeleton(
    name="person19",
    joints=(*COCO17.joints, "neck", "head_top"),
    flip_pairs=COCO17.flip_pairs,
    bones=(*COCO17.bones, (5, 17), (6, 17), (17, 18)),
    upper_body=(*COCO17.upper_body, 17, 18),
    oks_sigmas=(*COCO17.oks_sigmas, 0.079, 0.079),
)

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO17, LSP14, MPII16, H36M18, PERSON19)}

# One name for what datasets call differently.
_SYNONYMS = {"upper_neck": "neck"}


def joint_map(source: Skeleton, target: Skeleton) -> tuple[int | None, ...]:
    """For each joint of `target` the index of the same joint in `source`, or None."""
    names = [_SYNONYMS.get(joint, joint) for joint in source.joints]
    wanted = [_SYNONYMS.get(joint, joint) for joint in target.joints]
    return tuple(names.index(name) if name in names else None for name in wanted)
