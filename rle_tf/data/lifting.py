"""What a lifter sees and says: joints in the image, and where they are in space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rle_tf import metrics
from rle_tf.data.augment import Augmentation
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError, ModelError
from rle_tf.geometry import DEPTH_MM, camera_to_image, image_to_camera, screen_coordinates
from rle_tf.skeletons import Skeleton


class Person(NamedTuple):
    """One row of records (or, with a leading N, all rows) as tensors.

    `screen` (K, 2) are the annotated joints in `geometry.screen_coordinates`, `space` (K, 3) in the
    camera's axes from the root, in units of 2 m.
    """

    screen: tf.Tensor
    space: tf.Tensor
    labelled: tf.Tensor


@dataclass(frozen=True)
class KeypointFormat:
    """The input of a lifter, an `InputFormat`: annotated joints in place of an image.

    `root` is the index of the joint that the others are relative to.
    """

    root: int

    reads_images = False
    draws = 1
    mirror_shift = 0.0

    def columns(self, records: Records) -> Person:
        flat = ~np.isfinite(records.cameras).all(axis=1) | (records.keypoints.shape[-1] != 3)
        if flat.any():
            raise DataError(
                f"the source has {flat.sum()} people without depths or cameras, the first in "
                f"{records.image_paths[np.argmax(flat)]}; expected 3D poses to learn lifting from"
            )
        joints_mm = image_to_camera(records.keypoints, records.cameras)
        space_mm = joints_mm - joints_mm[:, [self.root]]
        screen = screen_coordinates(records.keypoints[..., :2], records.image_wh)
        return Person(
            screen=tf.constant(screen, tf.float32),
            space=tf.constant(space_mm / DEPTH_MM, tf.float32),
            labelled=tf.constant(records.labelled),
        )

    def example(
        self,
        person: Person,
        skeleton: Skeleton,
        augmentation: Augmentation | None,
        draws: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Screen coordinates (K, 2), and the target {"keypoints": (K, 3), "weight": (K, 3)}.

        Of an augmentation the mirroring alone applies. A joint that is not labelled is where the
        screen's centre is; the root has no weight, as it is 0 by definition.
        """
        screen, space, labelled = person
        if augmentation is not None:
            screen, space, labelled = tf.cond(
                draws[0] < augmentation.flip_probability,
                lambda: (
                    _mirror(screen, skeleton.flip_permutation),
                    _mirror(space, skeleton.flip_permutation),
                    tf.gather(labelled, skeleton.flip_permutation),
                ),
                lambda: (screen, space, labelled),
            )
        # Nothing is known relative to a root that is not.
        supervised = labelled & labelled[self.root]
        supervised &= tf.range(len(skeleton.joints)) != self.root
        supervised = supervised[:, None] & tf.math.is_finite(space)
        return tf.where(labelled[:, None], screen, 0.0), {
            "keypoints": tf.where(supervised, space, 0.0),
            "weight": tf.cast(supervised, tf.float32),
        }

    def mirror(self, inputs: tf.Tensor, permutation: tuple[int, ...]) -> tf.Tensor:
        """Screen coordinates (B, K, 2) of the mirrored people."""
        return _mirror(inputs, permutation)

    def decode(
        self, output: dict[str, np.ndarray], records: Records, spread: Sequence[float]
    ) -> Poses:
        """Joints in space as the poses that the camera sees, with the root where it truly is."""
        mu, sigma = (np.asarray(output[key], np.float64) for key in ("mu", "sigma"))
        truth_mm = image_to_camera(records.keypoints, records.cameras)
        joints_mm = mu * DEPTH_MM + truth_mm[:, [self.root]]
        # Nothing is behind the camera, whatever an untrained lifter says.
        joints_mm[..., 2] = np.maximum(joints_mm[..., 2], 1.0)
        sigmas = sigma * spread * DEPTH_MM
        sigmas[..., :2] *= records.cameras[:, None, :2] / joints_mm[..., 2:]
        joint_scores = 1 - sigma.mean(axis=-1)
        return Poses(
            keypoints=camera_to_image(joints_mm, records.cameras),
            sigmas=sigmas,
            joint_scores=joint_scores,
            person_scores=metrics.person_scores(joint_scores, records.box_scores),
            crop_boxes_xyxy=records.boxes_xyxy,
        )

    def check(self, regressor: keras.Model) -> None:
        if len(regressor.input_shape) != 3:
            raise ModelError(
                f"regressor '{regressor.name}' takes an input of {regressor.input_shape}; "
                "expected a lifter's, keypoints (B, K, 2)"
            )


def _mirror(points: tf.Tensor, permutation: tuple[int, ...]) -> tf.Tensor:
    """Points (..., K, D) with x reversed and the joints of the left and right exchanged."""
    points = tf.concat([-points[..., :1], points[..., 1:]], axis=-1)
    return tf.gather(points, permutation, axis=-2)
