"""A run as one validated object: YAML in, YAML out.

Every section knows how to build what it describes. Types are strict (a string is no number) and
unknown keys are refused with the valid ones listed. YAML is version 1.2: `1e-3` is a number, `on`
is a string.
"""

import difflib
import json
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rle_tf.data.augment import Augmentation
from rle_tf.data.background import with_background
from rle_tf.data.coco import CocoSource
from rle_tf.data.crops import CropFormat
from rle_tf.data.h36m import H36mSource
from rle_tf.data.lifting import KeypointFormat
from rle_tf.data.lsp import LspSource
from rle_tf.data.mix import MappedSource, MixSource
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.pipeline import usable_rows
from rle_tf.data.source import InputFormat, Source
from rle_tf.data.synthetic import Synthetic3DSource, SyntheticSource
from rle_tf.errors import ConfigError
from rle_tf.flow import RealNVP
from rle_tf.losses import DensityLoss, L1Loss, L2Loss, PoseLoss, RLELoss
from rle_tf.models.lifting import build_lifter
from rle_tf.models.regressor import BACKBONES, HEADS, build_regressor
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
        flip_test: Average with the prediction for the mirrored input.
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
    image_size: tuple[Side, Side] = (256, 192)
    mean: tuple[float, float, float] = (0.406, 0.457, 0.480)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    box_margin: float = Field(1.25, gt=0)
    augmentation: Augmentation = Augmentation()
    on_bad_image: Literal["error", "skip"] = "error"


class ModelConfig(Section):
    """An image regressor.

    Attributes:
        backbone: Its name.
        weights: `null` (random), `imagenet` (downloaded), or a file of backbone weights.
        output_layer: The backbone is cut at this layer.
        head: `pooled` (the paper's) or `soft_argmax`.
        feature_norm: Whether the mean head divides its features by their L2 norm.
        freeze: Layers of the backbone up to this one are not trained.
        pyramid: Finer maps that head `soft_argmax` looks at, names of layers from fine to coarse.
        pyramid_channels: Of the map that they are merged into.
        map_sigma: Whether sigma sees what the maps of head `soft_argmax` look at.
    """

    kind: Literal["image"] = "image"
    backbone: Literal[tuple(BACKBONES)]
    weights: str | None = None
    output_layer: str | None = None
    head: Literal[tuple(HEADS)] = "pooled"
    feature_norm: bool = True
    freeze: str | None = None
    pyramid: tuple[str, ...] = ()
    pyramid_channels: int = Field(128, gt=0)
    map_sigma: bool = False

    @model_validator(mode="after")
    def _maps_are_of_soft_argmax(self):
        for key in ("pyramid", "map_sigma"):
            if getattr(self, key) and self.head != "soft_argmax":
                raise ValueError(f"{key} is of head soft_argmax; expected none with {self.head}")
        return self

    def build(self, skeleton: Skeleton, dims: int, image_size: tuple[int, int]):
        """The `keras.Model` of `rle_tf.models.regressor.build_regressor`."""
        return build_regressor(
            self.backbone,
            skeleton,
            dims,
            image_size,
            weights=self.weights,
            head=self.head,
            feature_norm=self.feature_norm,
            output_layer=self.output_layer,
            freeze=self.freeze,
            pyramid=self.pyramid,
            pyramid_channels=self.pyramid_channels,
            map_sigma=self.map_sigma,
        )


class LiftingConfig(Section):
    """A lifter: annotated joints in the image in, joints in space out.

    Attributes:
        width, blocks, dropout: As in `rle_tf.models.lifting.build_lifter`.
    """

    kind: Literal["lifting"] = "lifting"
    width: int = Field(1024, gt=0)
    blocks: int = Field(2, ge=0)
    dropout: float = Field(0.5, ge=0, lt=1)

    def build(self, skeleton: Skeleton, dims: int, image_size: tuple[int, int]):
        """The `keras.Model` of `build_lifter`, which has three coordinates and sees no image."""
        return build_lifter(skeleton, self.width, self.blocks, self.dropout)


class RLELossConfig(Section):
    """Residual log-likelihood estimation.

    Attributes:
        base: The simple density Q.
        convention: `paper` (equation 8) or `official` (the authors' code).
        flow_layers, flow_hidden: Couplings of the flow and width of their networks. In 3D there is
            a second flow, for people without depths.
    """

    kind: Literal["rle"] = "rle"
    base: Literal["laplace", "gaussian"] = "laplace"
    convention: Literal["paper", "official"] = "paper"
    flow_layers: int = Field(6, ge=0)
    flow_hidden: int = Field(64, gt=0)

    def build(self, dims: int) -> PoseLoss:
        flow, flow_2d = (
            RealNVP(d, layers=self.flow_layers, hidden=self.flow_hidden) if d else None
            for d in (dims, 2 if dims == 3 else 0)
        )
        return RLELoss(flow, base=self.base, convention=self.convention, flow_2d=flow_2d)


class L1LossConfig(Section):
    """The absolute error of the mean; sigma is not trained."""

    kind: Literal["l1"] = "l1"

    def build(self, dims: int) -> PoseLoss:
        return L1Loss()


class L2LossConfig(Section):
    """The squared error of the mean; sigma is not trained."""

    kind: Literal["l2"] = "l2"

    def build(self, dims: int) -> PoseLoss:
        return L2Loss()


class DensityLossConfig(Section):
    """The likelihood under a simple density whose scale is learned, without a flow."""

    kind: Literal["laplace", "gaussian"]

    def build(self, dims: int) -> PoseLoss:
        return DensityLoss(self.kind)


class TrainConfig(Section):
    """How it is trained: Adam, with a learning rate that falls.

    Attributes:
        batch_size: Over all replicas.
        epochs: How often every person is seen.
        steps_per_epoch: Batches that count as an epoch; by default as many as everybody fills.
        learning_rate: Adam's.
        schedule: `steps`, or `cosine`: along half a cosine to 0 at the last epoch (Loshchilov and
            Hutter, ICLR 2017). A run that is resumed with other `epochs` takes another curve.
        drop_epochs: With `steps`, after each of these epochs the learning rate is multiplied by
            `drop_factor`.
        clip_norm: Limit of the global norm of the gradient, or `null`.
        start: Folder of a run whose regressor and flow this one starts from, at any image size.
        map_weight: Of what the maps of head `soft_argmax` learn directly, `losses.MapLoss`.
        strategy: `none` (one device) or `mirrored` (all devices of this machine).
        evaluate_every: Epochs between evaluations of AP while training; 0: at the end alone.
        drawn_people: How many validation people are drawn for TensorBoard after each epoch.
        keep_checkpoints: How many are kept, the newest ones.
    """

    batch_size: int = Field(gt=0)
    epochs: int = Field(gt=0)
    steps_per_epoch: int | None = Field(None, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["steps", "cosine"] = "steps"
    drop_epochs: tuple[int, ...] = ()
    drop_factor: float = Field(0.1, gt=0)
    clip_norm: float | None = Field(None, gt=0)
    start: str | None = None
    map_weight: float = Field(0.0, ge=0)
    strategy: Literal["none", "mirrored"] = "none"
    evaluate_every: int = Field(0, ge=0)
    drawn_people: int = Field(8, ge=0)
    keep_checkpoints: int = Field(2, gt=0)

    @field_validator("drop_epochs")
    @classmethod
    def _ascend_from_one(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if list(epochs) != sorted(set(epochs)) or min(epochs, default=1) < 1:
            raise ValueError("expected epochs from 1 on that ascend")
        return epochs

    @model_validator(mode="after")
    def _steps_or_cosine(self):
        if self.schedule == "cosine" and self.drop_epochs:
            raise ValueError("drop_epochs are of schedule steps; expected none with cosine")
        return self


def _model_kind(value) -> str:
    # The kind may be left out: most models look at images.
    return (
        value.get("kind", "image") if isinstance(value, dict) else getattr(value, "kind", "image")
    )


class RunConfig(Section):
    """A whole run.

    Attributes:
        name: Of the run; its default folders are runs/NAME and saved_models/NAME.
        seed: Of weights, order and augmentation.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig
    model: Annotated[
        Annotated[ModelConfig, Tag("image")] | Annotated[LiftingConfig, Tag("lifting")],
        Discriminator(_model_kind),
    ]
    loss: Annotated[
        RLELossConfig | L1LossConfig | L2LossConfig | DensityLossConfig, Field(discriminator="kind")
    ] = RLELossConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _lifters_see_no_images(self):
        if self.model.kind == "lifting":
            for key, field in DataConfig.model_fields.items():
                value = getattr(self.data, key)
                if key not in ("source", "augmentation") and value != field.default:
                    raise ValueError(
                        f"data.{key}: found {json.dumps(value)}; a model of kind lifting sees no "
                        "images, expected the key to be left out"
                    )
        return self

    @model_validator(mode="after")
    def _maps_are_taught_where_there_are_any(self):
        if self.train.map_weight and getattr(self.model, "head", None) != "soft_argmax":
            raise ValueError(
                f"train.map_weight: found {self.train.map_weight} for a model without maps; "
                "expected 0, or model.head soft_argmax"
            )
        return self

    @property
    def input_format(self) -> InputFormat:
        """What the model sees of a person."""
        if self.model.kind == "image":
            data = self.data
            return CropFormat(data.image_size, data.mean, data.std, data.box_margin)
        skeleton = self.data.source.skeleton
        if skeleton.root is None:
            raise ConfigError(
                f"model.kind: lifting, of people with the joints of '{skeleton.name}'; expected a "
                "source of 3D poses, h36m or synthetic with layout h36m"
            )
        return KeypointFormat(skeleton.root)

    def open_source(self, split: Split, boxes: Boxes | None = None) -> Source:
        """The people of a split.

        Args:
            split: `train` or `val`.
            boxes: By default annotated boxes for training and `evaluate.boxes` for validation.
        """
        boxes = boxes or (self.evaluate.boxes if split == "val" else "ground_truth")
        images = self.input_format.reads_images
        source = self.data.source.open(Wanted(split, boxes, self.evaluate, images))
        if images and self.data.on_bad_image == "skip":
            source = source.take(usable_rows(source.records))
        return source

    def save(self, path: Path) -> None:
        """Writes it with every default filled in."""
        text = StringIO()
        YAML(typ="safe", pure=True).dump(self.model_dump(mode="json"), text)
        path.write_text(text.getvalue(), encoding="utf-8")


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Reads and validates a recipe.

    Args:
        path: A YAML file.
        overrides: `section.key=value` each, the value in YAML; applied before validation.

    Raises:
        ConfigError: names the file, the key, what was found and what was expected; a line for
            each problem.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: {reason}; expected a YAML recipe (see configs/)") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}; expected a YAML recipe") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {values!r:.80}; expected sections of keys and values")
    for override in overrides:
        _apply(values, override)
    return _validate(values, " --set ".join([str(path), *overrides]))


def _parse_yaml(text: str, where: str):
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{where}: not YAML: {line}{error.problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from None


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last or "" in sections:
        raise ConfigError(f"--set {override}: expected SECTION.KEY=VALUE")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{section}' is {values!r:.80}, not a section")
    values[last] = _parse_yaml(text, f"--set {override}")


def _validate(values: dict, where: str) -> RunConfig:
    try:
        # Through JSON, where pydantic's strict mode takes a list for a tuple. What YAML has and
        # JSON has not (a date, say) goes as the text that stood there.
        text = json.dumps(values, default=str)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: not a tree of keys and values: {error}") from None
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        # A default that is made of another value, which is wrong itself, is no news.
        problems = [
            _explain(problem)
            for problem in error.errors()
            if problem["type"] != "default_factory_not_called"
        ]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems)) from None


def _explain(problem: dict) -> str:
    """What pydantic found wrong, in a line."""
    name, valid = _locate(problem["loc"])
    found = json.dumps(problem["input"])
    if len(found) > 100:
        found = found[:100] + "..."
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            key = name.split(".")[-1]
            close = difflib.get_close_matches(key, valid, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            return f"{name}: unknown key; {hint}valid keys: {', '.join(valid)}"
        case "missing":
            return f"{name}: missing; expected a value"
        case "union_tag_not_found":
            return f"{name}.kind: missing; expected a value"
        case "union_tag_invalid":
            tag, expected = context["tag"], context["expected_tags"]
            return f"{name}.kind: found {json.dumps(tag)}; expected one of {expected}"
        case "value_error" if not name:  # of the whole, which says itself where
            return str(context["error"])
        case "value_error":
            return f"{name}: found {found}; {context['error']}"
        case _:
            message = problem["msg"].replace("Input should be", "expected")
            return f"{name}: found {found}; {message[0].lower()}{message[1:]}"


def _locate(location: tuple[str | int, ...]) -> tuple[str, list[str]]:
    """The dotted name of a pydantic location, and the keys of the section that it is in."""
    sections, names, keys = [RunConfig], [], []
    for part in location:
        if len(sections) > 1:  # the kind of a union's member: no key of the file
            sections = [s for s in sections if s.model_fields["kind"].default == part]
            continue
        names.append(str(part))
        fields = sections[0].model_fields if sections else {}
        keys = list(fields)
        sections = _sections(fields[part].annotation) if part in fields else []
    return ".".join(names), keys


def _sections(annotation: type) -> list[type[BaseModel]]:
    """A section, the sections of a union, or nothing where a field holds values."""
    options = get_args(annotation) or (annotation,)
    options = [get_args(o)[0] if get_origin(o) is Annotated else o for o in options]
    return [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
