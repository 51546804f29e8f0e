"""The `data` section of a run: where people come from and what the regressor sees of them.

Every kind of dataset is a section that knows how to open its people.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from rle_tf.data.augment import Augmentation
from rle_tf.data.background import with_background
from rle_tf.data.coco import CocoSource
from rle_tf.data.h36m import H36mSource
from rle_tf.data.lsp import LspSource
from rle_tf.data.mix import MappedSource, MixSource
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.source import Source
from rle_tf.data.synthetic import Synthetic3DSource, SyntheticSource
from rle_tf.errors import ConfigError
from rle_tf.skeleton_file import read_skeleton, skeleton_content
from rle_tf.skeletons import COCO17, H36M18, LSP14, MPII16, Skeleton

Split = Literal["train", "val"]
Boxes = Literal["ground_truth", "detections"]
# A side of the regressor's input: backbones halve it five times.
Side = Annotated[int, Field(gt=0, multiple_of=32)]
Positive = Annotated[float, Field(gt=0)]


def _named_skeleton(value) -> Skeleton:
    if isinstance(value, Skeleton):
        return value
    if not isinstance(value, str | dict):
        raise ValueError("expected the name of a skeleton, the path of a YAML file, or a section")
    try:
        return read_skeleton(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


# A name, the path of a file, or its content. A resolved config holds the name or the content, so it
# needs the file no more.
AnySkeleton = Annotated[
    Skeleton, PlainValidator(_named_skeleton), PlainSerializer(skeleton_content)
]


class Section(BaseModel):
    """What all sections share: strict types, finite numbers, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class EvaluateConfig(Section):
    """How it is scored.

    Attributes:
        batch_size: Of prediction.
        flip_test: Average with the prediction for the mirrored input, in a batch of twice the size.
        boxes: Annotated boxes, or the split's detections.
        min_box_score: Detections below it are left out.
        oks_nms: Threshold of the non-maximum suppression among detections.
    """

    batch_size: int = Field(64, gt=0)
    flip_test: bool = True
    boxes: Boxes = "ground_truth"
    min_box_score: float = Field(0.0, ge=0, le=1)
    oks_nms: float = Field(0.9, gt=0, le=1)


@dataclass(frozen=True)
class Wanted:
    """What is asked of a dataset.

    Attributes:
        split, boxes: Which people.
        evaluate: How detections are filtered.
        images: Whether images are looked at.
        key: Where the dataset's section stands in the file, for messages.
    """

    split: Split
    boxes: Boxes
    evaluate: EvaluateConfig
    images: bool
    key: str = "data.source"


class SplitFiles(Section):
    """Files of one split, relative to the dataset's root.

    Attributes:
        annotations: JSON in the dataset's layout.
        images: Folder of the images.
        detections: Person detections in COCO's result format, for evaluation with a detector's
            boxes.
    """

    annotations: str
    images: str
    detections: str | None = None


class FolderData(Section):
    """A dataset in a folder; each kind has its own layout and the standard names as defaults.

    Attributes:
        root: Its folder.
        train, val: Files of each split.
    """

    kind: str
    root: str
    train: SplitFiles
    val: SplitFiles | None

    def _paths(self, wanted: Wanted) -> tuple[Path, Path, Path | None]:
        """Annotations, images, and detections where they are asked for.

        Raises:
            ConfigError: if the split, or the detections that are asked for, are not named.
        """
        root, split = Path(self.root).expanduser(), wanted.split
        files = {"train": self.train, "val": self.val}[split]
        if files is None:
            raise ConfigError(
                f"{wanted.key}.{split}: not set; expected annotations and images to evaluate on"
            )
        if wanted.boxes == "detections" and files.detections is None:
            raise ConfigError(
                f"{wanted.key}.{split}.detections: not set; evaluate.boxes 'detections' needs a "
                "JSON of person detections"
            )
        detections = root / files.detections if wanted.boxes == "detections" else None
        return root / files.annotations, root / files.images, detections


class CocoData(FolderData):
    """A dataset in the COCO keypoint layout; the defaults are the folders of COCO 2017.

    Attributes:
        skeleton: The joints of its category, see `rle_tf.skeleton_file.read_skeleton`.
        background: Places without people to train on, as a share of the people, see
            `rle_tf.data.background`.
    """

    kind: Literal["coco"] = "coco"
    skeleton: AnySkeleton = COCO17
    background: float = Field(0.0, ge=0, le=1)
    train: SplitFiles = SplitFiles(
        annotations="annotations/person_keypoints_train2017.json", images="train2017"
    )
    val: SplitFiles = SplitFiles(
        annotations="annotations/person_keypoints_val2017.json",
        images="val2017",
        detections="detections/person_detections_val2017.json",
    )

    def open(self, wanted: Wanted) -> Source:
        """The people of a split.

        Raises:
            ConfigError: if detections are asked for and the split names none.
            DataError: if files are missing or wrong.
        """
        annotations, folder, detections = self._paths(wanted)
        source = CocoSource(
            annotations,
            folder,
            skeleton=self.skeleton,
            detections=detections,
            min_box_score=wanted.evaluate.min_box_score,
            oks_nms_threshold=wanted.evaluate.oks_nms,
        )
        if self.background and wanted.split == "train":
            return with_background(source, self.background)
        return source


class H36mData(FolderData):
    """Human3.6M in the layout of the RLE paper's code; the defaults are protocol 2."""

    kind: Literal["h36m"] = "h36m"
    train: SplitFiles = SplitFiles(
        annotations="annotations/Sample_trainmin_train_Human36M_protocol_2.json", images="images"
    )
    val: SplitFiles = SplitFiles(
        annotations="annotations/Sample_64_test_Human36M_protocol_2.json", images="images"
    )

    @property
    def skeleton(self) -> Skeleton:
        return H36M18

    def open(self, wanted: Wanted) -> Source:
        """The people of a split; arguments and errors as `CocoData.open`."""
        annotations, folder, detections = self._paths(wanted)
        return H36mSource(annotations, folder if wanted.images else None, detections=detections)


class MpiiData(FolderData):
    """MPII in COCO's format, the joints of the RLE paper's code; without a split to evaluate on
    unless one is named."""

    kind: Literal["mpii"] = "mpii"
    train: SplitFiles = SplitFiles(annotations="annotations/annot_mpii.json", images="images")
    val: SplitFiles | None = None

    @property
    def skeleton(self) -> Skeleton:
        return MPII16

    def open(self, wanted: Wanted) -> Source:
        """The people of a split; arguments and errors as `CocoData.open`."""
        if wanted.boxes == "detections":
            raise ConfigError(
                "evaluate.boxes: 'detections' is not for MPII, whose score needs annotated boxes; "
                "expected ground_truth"
            )
        annotations, folder, _ = self._paths(wanted)
        return MpiiSource(annotations, folder)


class LspData(Section):
    """Leeds Sports Pose extended, which has no split of its own.

    Attributes:
        root: Its folder.
        joints, images: The file `joints.mat` and the folder of photographs, relative to the root.
        train, val: The first and the last photograph of each split, from 1, both included.
    """

    kind: Literal["lsp"] = "lsp"
    root: str
    joints: str = "joints.mat"
    images: str = "images"
    train: tuple[int, int]
    val: tuple[int, int]

    @property
    def skeleton(self) -> Skeleton:
        return LSP14

    def open(self, wanted: Wanted) -> Source:
        """The people of a split; errors as `CocoData.open`."""
        if wanted.boxes == "detections":
            raise ConfigError(
                "evaluate.boxes: 'detections' is not for LSP, whose people have no boxes but those "
                "of their joints; expected ground_truth"
            )
        root = Path(self.root).expanduser()
        first, last = {"train": self.train, "val": self.val}[wanted.split]
        return LspSource(root / self.joints, root / self.images, first, last)


class SyntheticData(Section):
    """Rendered people, written to disk before they are first read.

    Attributes:
        root: Where they are written.
        layout: `coco`, or `h36m`: single people in 3D before four cameras.
        images: Whether pictures are rendered, too; a lifter needs none, and thousands of people
            are written in a second then. Layout `h36m`.
        train_people, val_people: How many.
        rendered_size: (height, width) of the written images, in pixels.
        seed: Decides what is rendered.
    """

    kind: Literal["synthetic"] = "synthetic"
    root: str
    layout: Literal["coco", "h36m"] = "coco"
    images: bool = True
    train_people: int = Field(gt=0)
    val_people: int = Field(gt=0)
    rendered_size: tuple[int, int] = (160, 160)
    seed: int = 0

    @model_validator(mode="after")
    def _pictures_of_coco(self):
        if self.layout == "coco" and not self.images:
            raise ValueError("images: false is for layout h36m")
        return self

    @property
    def skeleton(self) -> Skeleton:
        return {"coco": COCO17, "h36m": H36M18}[self.layout]

    def open(self, wanted: Wanted) -> Source:
        """The people of a split; renders them if they are not there yet.

        Raises:
            ConfigError: if images or detections are asked for that are not written.
            DataError: if something else is in the folder.
        """
        people = {
            "train_people": self.train_people,
            "val_people": self.val_people,
            "seed": self.seed,
            "rendered_size": self.rendered_size,
        }
        root = Path(self.root).expanduser()
        if self.layout == "coco":
            return SyntheticSource(
                root,
                wanted.split,
                **people,
                detected=wanted.boxes == "detections",
                min_box_score=wanted.evaluate.min_box_score,
                oks_nms_threshold=wanted.evaluate.oks_nms,
            )
        if wanted.images and not self.images:
            raise ConfigError(
                f"{wanted.key}.images: false, and the model looks at images; expected true, or "
                "model.kind lifting"
            )
        if wanted.boxes == "detections":
            raise ConfigError(
                "evaluate.boxes: 'detections' are not written in layout h36m; expected ground_truth"
            )
        return Synthetic3DSource(root, wanted.split, **people, images=self.images)


Single = Annotated[
    CocoData | H36mData | LspData | MpiiData | SyntheticData, Field(discriminator="kind")
]


class MixData(Section):
    """Two datasets that take turns in training.

    Both are evaluated on, each by its own metrics, where the second has a split to evaluate on and
    the skeleton has all of its joints; otherwise the first alone. Boxes of the second are the
    annotated ones.

    Attributes:
        root: What the roots of both are relative to.
        first, second: Any two whose skeletons have joints in common.
        skeleton: Of both together, as `CocoData.skeleton`; by default the first's.
    """

    kind: Literal["mix"] = "mix"
    root: str = "."
    first: Single
    second: Single
    skeleton: AnySkeleton = Field(default_factory=lambda fields: fields["first"].skeleton)

    def open(self, wanted: Wanted) -> Source:
        """The people of both, or of the first alone; arguments and errors as `CocoData.open`."""
        root = Path(self.root).expanduser()

        def opened(name: str, **changes: str) -> Source:
            part = {"first": self.first, "second": self.second}[name]
            placed = part.model_copy(update={"root": str(root / Path(part.root).expanduser())})
            return placed.open(replace(wanted, key=f"{wanted.key}.{name}", **changes))

        first = opened("first")
        evaluated = not (isinstance(self.second, FolderData) and self.second.val is None)
        scored = evaluated and set(self.second.skeleton.joints) <= set(self.skeleton.joints)
        if wanted.split == "train" or scored:
            return MixSource(first, opened("second", boxes="ground_truth"), self.skeleton)
        return first if first.skeleton == self.skeleton else MappedSource(first, self.skeleton)


class DataConfig(Section):
    """What the regressor looks at.

    Attributes:
        source: Where people come from.
        records: A folder that `rle-tf records` has written, on any file system of `tf.io.gfile`:
            training people are read from it in place of the source's photographs.
        service: `grpc://HOST:PORT` of a `rle-tf data-service dispatcher`, whose workers make the
            training batches then.
        image_size: (height, width) of the regressor's input; multiples of 32.
        mean, std: RGB; the input is (RGB / 255 - mean) / std.
        box_margin: Between a person's box and the crop.
        augmentation: Of training crops.
        on_bad_image: `error` stops at an image that cannot be decoded; `skip` decodes all images
            once at the start and leaves bad ones out, named and counted in the log. An image that
            goes bad later stops the run with either.
    """

    source: Annotated[
        CocoData | H36mData | LspData | MpiiData | SyntheticData | MixData,
        Field(discriminator="kind"),
    ]
    records: str | None = None
    service: str | None = None
    image_size: tuple[Side, Side] = (256, 192)
    mean: tuple[float, float, float] = (0.406, 0.457, 0.480)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    box_margin: float = Field(1.25, gt=0)
    augmentation: Augmentation = Augmentation()
    on_bad_image: Literal["error", "skip"] = "error"
