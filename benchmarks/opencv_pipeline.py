"""The comparator: the paper's training input by OpenCV and PyTorch's DataLoader, as its users would
write it: read the photograph, half body, scale, rotation, flip, warp, normalise, target."""

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from rle_tf.data.augment import Augmentation
from rle_tf.data.source import Records
from rle_tf.skeletons import Skeleton


class People(Dataset):
    def __init__(
        self,
        records: Records,
        skeleton: Skeleton,
        size: tuple[int, int],
        view: Augmentation,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        self.records, self.view = records, view
        self.height, self.width = size
        self.mean, self.std = np.float32(mean), np.float32(std)
        self.pairs = list(skeleton.flip_permutation)
        self.upper = np.isin(np.arange(len(skeleton.joints)), skeleton.upper_body)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int):
        records, view, rng = self.records, self.view, self.rng
        image = cv2.cvtColor(cv2.imread(records.image_paths[row]), cv2.COLOR_BGR2RGB)
        joints, labelled = records.keypoints[row].copy(), records.labelled[row]
        box = records.boxes_xyxy[row]
        centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        aspect = self.width / self.height
        size = 1.25 * np.array([max(size[0], size[1] * aspect), max(size[1], size[0] / aspect)])
        if labelled.sum() > view.half_body_min_joints and rng.random() < view.half_body_probability:
            centre, size = self.half_body(joints, labelled, centre, size)
        size = size * rng.uniform(*view.scale_range)
        angle = 0.0
        if rng.random() < view.rotation_probability:
            angle = rng.uniform(-view.rotation_deg, view.rotation_deg)
        if rng.random() < view.flip_probability:
            image = image[:, ::-1]
            joints[:, 0] = image.shape[1] - 1 - joints[:, 0]
            joints, labelled = joints[self.pairs], labelled[self.pairs]
            centre = np.array([image.shape[1] - 1 - centre[0], centre[1]])
        matrix = cv2.getRotationMatrix2D(tuple(map(float, centre)), angle, self.width / size[0])
        matrix[:, 2] += np.array([self.width, self.height]) / 2 - centre
        crop = cv2.warpAffine(
            image, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR
        ).astype(np.float32)
        crop = (crop / 255 - self.mean) / self.std
        places = joints @ matrix[:, :2].T + matrix[:, 2]
        target = (places / (self.width, self.height) - 0.5).astype(np.float32)
        weight = np.repeat(labelled[:, None], 2, axis=1).astype(np.float32)
        return crop, {"keypoints": np.where(weight > 0, target, 0), "weight": weight}

    def half_body(self, joints, labelled, centre, size):
        halves = [labelled & self.upper, labelled & ~self.upper]
        if self.rng.random() < 0.5:
            halves.reverse()
        half = next((each for each in halves if each.sum() > 2), None)
        if half is None:
            return centre, size
        extent = np.ptp(joints[half], axis=0)
        aspect = size[0] / size[1]
        width = max(extent[0], extent[1] * aspect, 1.0) * self.view.half_body_margin
        return joints[half].mean(axis=0), np.array([width, width / aspect])


def loader(people: People, batch_size: int, workers: int) -> DataLoader:
    cv2.setNumThreads(0)
    return DataLoader(
        people,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
