"""A run as one validated object: YAML in, YAML out.

Every section knows how to build what it describes. Types are strict (a string is no number) and
unknown keys are refused with the valid ones listed. YAML is version 1.2: `1e-3` is a number, `on`
is a string.
"""

import difflib
import json
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rle_tf.data.augment import Augmentation
from rle_tf.data.coco import CocoSource
from rle_tf.data.pipeline import InputFormat, usable_rows
from rle_tf.data.source import Source
from rle_tf.data.synthetic import SyntheticSource
from rle_tf.errors import ConfigError
from rle_tf.flow import RealNVP
from rle_tf.losses import L1Loss, PoseLoss, RLELoss
from rle_tf.models.regressor import BACKBONES, HEADS, build_regressor
from rle_tf.skeletons import COCO17, Skeleton

Split = Literal["train", "val"]
Boxes = Literal["ground_truth", "detections"]
# A side of the regressor's input: backbones halve it five times.
Side = Annotated[int, Field(gt=0, multiple_of=32)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """What all sections share: strict types, finite numbers, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class CocoSplit(Section):
    """Files of one split, relative to the dataset's root.

    Attributes:
        annotations: COCO keypoint JSON.
        images: Folder of the images.
        detections: Person detections in COCO's result format, for evaluation with a detector's
            boxes.
    """

    annotations: str
    images: str
    detections: str | None = None


class CocoData(Section):
    """A dataset in the COCO keypoint layout; the defaults are the folders of COCO 2017.

    Attributes:
        root: Its folder.
        train, val: Files of each split.
    """

    kind: Literal["coco"] = "coco"
    root: str
    train: CocoSplit = CocoSplit(
        annotations="annotations/person_keypoints_train2017.json", images="train2017"
    )
    val: CocoSplit = CocoSplit(
        annotations="annotations/person_keypoints_val2017.json",
        images="val2017",
        detections="detections/person_detections_val2017.json",
    )

    @property
    def skeleton(self) -> Skeleton:
        return COCO17

    def open(self, split: Split, boxes: Boxes, min_box_score: float, oks_nms: float) -> Source:
        """The people of a split.

        Raises:
            ConfigError: if detections are asked for and the split names none.
            DataError: if files are missing or wrong.
        """
        files = {"train": self.train, "val": self.val}[split]
        root = Path(self.root).expanduser()
        if boxes == "detections" and files.detections is None:
            raise ConfigError(
                f"data.source.{split}.detections: not set; evaluate.boxes 'detections' needs a "
                "JSON of person detections"
            )
        return CocoSource(
            root / files.annotations,
            root / files.images,
            skeleton=self.skeleton,
            detections=root / files.detections if boxes == "detections" else None,
            min_box_score=min_box_score,
            oks_nms_threshold=oks_nms,
        )


class SyntheticData(Section):
    """Rendered people, written to disk in the COCO layout before they are first read.

    Attributes:
        root: Where they are written.
        train_people, val_people: How many.
        rendered_size: (height, width) of the written images, in pixels.
        seed: Decides what is rendered.
    """

    kind: Literal["synthetic"] = "synthetic"
    root: str
    train_people: int = Field(gt=0)
    val_people: int = Field(gt=0)
    rendered_size: tuple[int, int] = (160, 160)
    seed: int = 0

    @property
    def skeleton(self) -> Skeleton:
        return COCO17

    def open(self, split: Split, boxes: Boxes, min_box_score: float, oks_nms: float) -> Source:
        """The people of a split; renders them if they are not there yet."""
        return SyntheticSource(
            Path(self.root).expanduser(),
            split,
            train_people=self.train_people,
            val_people=self.val_people,
            seed=self.seed,
            rendered_size=self.rendered_size,
            detected=boxes == "detections",
            min_box_score=min_box_score,
            oks_nms_threshold=oks_nms,
        )


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

    source: Annotated[CocoData | SyntheticData, Field(discriminator="kind")]
    image_size: tuple[Side, Side] = (256, 192)
    mean: tuple[float, float, float] = (0.406, 0.457, 0.480)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    box_margin: float = Field(1.25, gt=0)
    augmentation: Augmentation = Augmentation()
    on_bad_image: Literal["error", "skip"] = "error"

    @property
    def input_format(self) -> InputFormat:
        return InputFormat(self.image_size, self.mean, self.std, self.box_margin)


class ModelConfig(Section):
    """The regressor.

    Attributes:
        backbone: Its name.
        weights: `null` (random), `imagenet` (downloaded), or a file of backbone weights.
        output_layer: The backbone is cut at this layer.
        head: `pooled` (the paper's) or `soft_argmax`.
        feature_norm: Whether the mean head divides its features by their L2 norm.
    """

    backbone: Literal[tuple(BACKBONES)]
    weights: str | None = None
    output_layer: str | None = None
    head: Literal[tuple(HEADS)] = "pooled"
    feature_norm: bool = True

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
        )


class RLELossConfig(Section):
    """Residual log-likelihood estimation.

    Attributes:
        base: The simple density Q.
        convention: `paper` (equation 8) or `official` (the authors' code).
        flow_layers, flow_hidden: Couplings of the flow and width of their networks.
    """

    kind: Literal["rle"] = "rle"
    base: Literal["laplace", "gaussian"] = "laplace"
    convention: Literal["paper", "official"] = "paper"
    flow_layers: int = Field(6, ge=0)
    flow_hidden: int = Field(64, gt=0)

    def build(self, dims: int) -> PoseLoss:
        flow = RealNVP(dims, layers=self.flow_layers, hidden=self.flow_hidden)
        return RLELoss(flow, base=self.base, convention=self.convention)


class L1LossConfig(Section):
    """The absolute error of the mean; sigma is not trained."""

    kind: Literal["l1"] = "l1"

    def build(self, dims: int) -> PoseLoss:
        return L1Loss()


class TrainConfig(Section):
    """How it is trained: Adam, with a learning rate that drops in steps.

    Attributes:
        batch_size: Over all replicas.
        epochs: How often every person is seen.
        learning_rate: Adam's.
        drop_epochs: After each of these epochs the learning rate is multiplied by `drop_factor`.
        clip_norm: Limit of the global norm of the gradient, or `null`.
        strategy: `none` (one device) or `mirrored` (all devices of this machine).
        evaluate_every: Epochs between evaluations of AP while training; 0: at the end alone.
        drawn_people: How many validation people are drawn for TensorBoard after each epoch.
        keep_checkpoints: How many are kept, the newest ones.
    """

    batch_size: int = Field(gt=0)
    epochs: int = Field(gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    drop_epochs: tuple[int, ...] = ()
    drop_factor: float = Field(0.1, gt=0)
    clip_norm: float | None = Field(None, gt=0)
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


class EvaluateConfig(Section):
    """How it is scored.

    Attributes:
        batch_size: Of prediction.
        flip_test: Average with the prediction for the mirrored crop.
        boxes: Annotated boxes, or the split's detections.
        min_box_score: Detections below it are left out.
        oks_nms: Threshold of the non-maximum suppression among detections.
    """

    batch_size: int = Field(64, gt=0)
    flip_test: bool = True
    boxes: Boxes = "ground_truth"
    min_box_score: float = Field(0.0, ge=0, le=1)
    oks_nms: float = Field(0.9, gt=0, le=1)


class RunConfig(Section):
    """A whole run.

    Attributes:
        name: Of the run; its default folders are runs/NAME and saved_models/NAME.
        seed: Of weights, order and augmentation.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig
    model: ModelConfig
    loss: Annotated[RLELossConfig | L1LossConfig, Field(discriminator="kind")] = RLELossConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    def open_source(self, split: Split, boxes: Boxes | None = None) -> Source:
        """The people of a split.

        Args:
            split: `train` or `val`.
            boxes: By default annotated boxes for training and `evaluate.boxes` for validation.
        """
        boxes = boxes or (self.evaluate.boxes if split == "val" else "ground_truth")
        source = self.data.source.open(
            split, boxes, self.evaluate.min_box_score, self.evaluate.oks_nms
        )
        if self.data.on_bad_image == "skip":
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
        problems = [_explain(problem) for problem in error.errors()]
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
    return [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
