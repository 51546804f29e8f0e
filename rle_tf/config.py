"""A run as one validated object: YAML in, YAML out.

Every section knows how to build what it describes. Types are strict (a string is no number) and
unknown keys are refused with the valid ones listed. YAML is version 1.2: `1e-3` is a number, `on`
is a string.
"""

import json
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML

from rle_tf.config_data import Boxes, DataConfig, EvaluateConfig, Section, Split, Wanted
from rle_tf.config_file import read_values, validated
from rle_tf.data.crops import CropFormat
from rle_tf.data.lifting import KeypointFormat
from rle_tf.data.pipeline import PhotographedPeople, usable_rows
from rle_tf.data.records import PackedPeople
from rle_tf.data.source import InputFormat, Source
from rle_tf.errors import ConfigError
from rle_tf.files import write_whole
from rle_tf.flow import RealNVP
from rle_tf.losses import (
    DensityLoss,
    DirectLoss,
    HeatmapLoss,
    L1Loss,
    L2Loss,
    PoseLoss,
    RLELoss,
)
from rle_tf.models.lifting import build_lifter
from rle_tf.models.regressor import BACKBONES, HEADS, TRAINED, build_regressor
from rle_tf.skeletons import Skeleton


class ModelConfig(Section):
    """An image regressor.

    Attributes:
        backbone: Its name.
        weights: `null` (random), `imagenet` (downloaded), or a file of backbone weights, or the
            folder of a run.
        output_layer: The backbone is cut at this layer.
        head: `pooled` (the paper's), `soft_argmax` or `heatmap`, which loss heatmap trains.
        feature_norm: Whether the mean head divides its features by their L2 norm.
        freeze: Layers of the backbone up to this one are not trained.
        trained: `all`; `sigma` alone, of a model whose keypoints are to stay as they are; `none`,
            for the flow of the loss alone. The last two want `train.start`.
        pyramid: Finer maps that a head with maps looks at, names of layers from fine to coarse.
        pyramid_channels: Of the map that they are merged into.
        deconvolutions: Transposed convolutions before the maps of a head that has some, each of
            which doubles their size; SimpleBaseline and the integral baseline have three.
        map_sigma: Whether sigma sees what the maps of head `soft_argmax` look at.
        sigma_dropout: Of what sigma sees then, the share that is left out in training: sigma
            rests on many signs of a hidden joint, not on a few.
        map_window: The mean is taken about the highest cell of those, under a normal window of so
            many cells; `null` for that of the whole map.
        root_sigma: Whether a 3D model's scores count the sigma of the root's depth, which is known
            to be 0; those of the authors do.
    """

    kind: Literal["image"] = "image"
    backbone: Literal[tuple(BACKBONES)]
    weights: str | None = None
    output_layer: str | None = None
    head: Literal[tuple(HEADS)] = "pooled"
    feature_norm: bool = True
    freeze: str | None = None
    trained: Literal[tuple(TRAINED)] = "all"
    pyramid: tuple[str, ...] = ()
    pyramid_channels: int = Field(128, gt=0)
    deconvolutions: int = Field(0, ge=0, le=5)
    map_sigma: bool = False
    sigma_dropout: float = Field(0.0, ge=0, lt=1)
    map_window: float | None = Field(None, gt=0)
    root_sigma: bool = False

    @model_validator(mode="after")
    def _heads_have_maps(self):
        for key in ("pyramid", "deconvolutions"):
            if getattr(self, key) and self.head == "pooled":
                raise ValueError(
                    f"{key} is of heads soft_argmax and heatmap; expected none with {self.head}"
                )
        for key in ("map_sigma", "map_window"):
            if getattr(self, key) and self.head != "soft_argmax":
                raise ValueError(f"{key} is of head soft_argmax; expected none with {self.head}")
        if self.trained != "all" and self.head == "heatmap":
            raise ValueError(f"trained: {self.trained}, with head heatmap; expected all")
        if self.sigma_dropout and not self.map_sigma:
            raise ValueError("sigma_dropout is of what map_sigma adds; expected 0 without it")
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
            trained=self.trained,
            pyramid=self.pyramid,
            pyramid_channels=self.pyramid_channels,
            deconvolutions=self.deconvolutions,
            map_sigma=self.map_sigma,
            sigma_dropout=self.sigma_dropout,
            map_window=self.map_window,
            root_sigma=self.root_sigma,
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
        convention: `paper` (equation 8), `official` (the authors' code) or `mmpose` (its).
        flow_layers, flow_hidden: Couplings of the flow and width of their networks. In 3D there is
            a second flow, for people without depths.
        flow_per_joint: Whether each joint has a flow of its own, or all share one (the paper's).
    """

    kind: Literal["rle"] = "rle"
    base: Literal["laplace", "gaussian"] = "laplace"
    convention: Literal["paper", "official", "mmpose"] = "paper"
    flow_layers: int = Field(6, ge=0)
    flow_hidden: int = Field(64, gt=0)
    flow_per_joint: bool = False

    def build(self, dims: int, joints: int) -> PoseLoss:
        flow, flow_2d = (
            _flow(self, d, joints) if d else None for d in (dims, 2 if dims == 3 else 0)
        )
        return RLELoss(flow, base=self.base, convention=self.convention, flow_2d=flow_2d)


class DirectLossConfig(Section):
    """The flow's likelihood alone, from which the paper comes to RLE.

    Attributes:
        reparameterised: Whether the flow is the density of residuals, or of the places themselves.
        flow_layers, flow_hidden, flow_per_joint: As in loss rle.
    """

    kind: Literal["direct"] = "direct"
    reparameterised: bool = True
    flow_layers: int = Field(6, ge=0)
    flow_hidden: int = Field(64, gt=0)
    flow_per_joint: bool = False

    def build(self, dims: int, joints: int) -> PoseLoss:
        return DirectLoss(_flow(self, dims, joints), self.reparameterised)


def _flow(config: RLELossConfig | DirectLossConfig, dims: int, joints: int) -> RealNVP:
    return RealNVP(
        dims,
        layers=config.flow_layers,
        hidden=config.flow_hidden,
        joints=joints if config.flow_per_joint else None,
    )


class L1LossConfig(Section):
    """The absolute error of the mean; sigma is not trained."""

    kind: Literal["l1"] = "l1"

    def build(self, dims: int, joints: int) -> PoseLoss:
        return L1Loss()


class L2LossConfig(Section):
    """The squared error of the mean; sigma is not trained."""

    kind: Literal["l2"] = "l2"

    def build(self, dims: int, joints: int) -> PoseLoss:
        return L2Loss()


class DensityLossConfig(Section):
    """The likelihood under a simple density whose scale is learned, without a flow."""

    kind: Literal["laplace", "gaussian"]

    def build(self, dims: int, joints: int) -> PoseLoss:
        return DensityLoss(self.kind)


class HeatmapLossConfig(Section):
    """Squared error of heatmaps, for head heatmap.

    Attributes:
        sigma_cells: Of a wanted peak, in cells of the map.
    """

    kind: Literal["heatmap"] = "heatmap"
    sigma_cells: float = Field(2.0, gt=0)

    def build(self, dims: int, joints: int) -> PoseLoss:
        return HeatmapLoss(self.sigma_cells)


class TrainConfig(Section):
    """How it is trained: Adam, with a learning rate that falls.

    Attributes:
        batch_size: Over all replicas and micro-batches.
        epochs: How often every person is seen.
        steps_per_epoch: Batches that count as an epoch; by default as many as everybody fills.
        learning_rate: Adam's, whatever the batch and however many replicas share it, but where
        learning_rate_batch: says which batch size it is for: it is multiplied by batch_size /
            learning_rate_batch then (linear scaling; Goyal et al., 2017).
        warmup_steps: Over so many first steps the learning rate grows from nearly 0, linearly.
        schedule: `steps`, or `cosine`: along half a cosine to 0 at the last epoch (Loshchilov and
            Hutter, ICLR 2017). A run that is resumed with other `epochs` takes another curve.
        drop_epochs: With `steps`, after each of these epochs the learning rate is multiplied by
            `drop_factor`.
        clip_norm: Limit of the global norm of the gradient, or `null`.
        accumulate: Micro-batches that a replica's share of a batch is split into, one after the
            other, to save memory; their gradients are averaged. Batch statistics are of each.
        ema: Momentum of a moving average of the weights (0.999 for one over some 1,000 steps),
            which is what is evaluated and exported, or `null`. Batch statistics are not averaged.
        precision: `bfloat16` and `float16` compute the backbone in 16 bits. Weights, heads, flow
            and loss are of 32 bits always; `float16` scales the loss, too.
        jit_compile: Compile steps with XLA; slower on CPUs.
        steps_per_execution: Steps between two looks at the loss, in one call of TensorFlow's.
        deterministic: Operations that give the same bits in every run; slower on GPUs. From then
            on the process stays so.
        start: Folder of a run whose regressor and flow this one starts from, at any image size.
        map_weight: Of what the maps of head `soft_argmax` learn directly, `losses.MapLoss`.
        joint_weights: By names of joints, what their weight in the loss is multiplied by; 1 for
            those that are left out.
        strategy: `none` (one device), `mirrored` (all devices of this machine), `multi_worker`
            (those of several) or `tpu`; see `rle_tf.distribution`. Whichever it is, a batch is the
            same people, unless they are of `data.records` or made by a `data.service`.
        sync_batch_norm: Whether batch statistics are of the whole batch, or of each replica's part.
        evaluate_every: Epochs between evaluations of AP while training; 0: at the end alone.
        drawn_people: How many validation people are drawn for TensorBoard after each epoch.
        keep_checkpoints: How many are kept, the newest ones.
        checkpoint_steps: Steps between checkpoints, beside those at the end of each epoch.
    """

    batch_size: int = Field(gt=0)
    epochs: int = Field(gt=0)
    steps_per_epoch: int | None = Field(None, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    learning_rate_batch: int | None = Field(None, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["steps", "cosine"] = "steps"
    drop_epochs: tuple[int, ...] = ()
    drop_factor: float = Field(0.1, gt=0)
    clip_norm: float | None = Field(None, gt=0)
    accumulate: int = Field(1, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    jit_compile: bool = False
    steps_per_execution: int = Field(1, gt=0)
    deterministic: bool = False
    start: str | None = None
    map_weight: float = Field(0.0, ge=0)
    joint_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    strategy: Literal["none", "mirrored", "multi_worker", "tpu"] = "none"
    sync_batch_norm: bool = False
    evaluate_every: int = Field(0, ge=0)
    drawn_people: int = Field(8, ge=0)
    keep_checkpoints: int = Field(2, gt=0)
    checkpoint_steps: int | None = Field(None, gt=0)

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

    @model_validator(mode="after")
    def _executions_end_where_others_do(self):
        for key in ("steps_per_epoch", "checkpoint_steps"):
            steps = getattr(self, key)
            if steps and steps % self.steps_per_execution:
                raise ValueError(
                    f"{key}: {steps} is no multiple of steps_per_execution, "
                    f"{self.steps_per_execution}"
                )
        return self

    @model_validator(mode="after")
    def _batches_split(self):
        if self.accumulate > 1 and self.sync_batch_norm and self.strategy != "none":
            raise ValueError(
                "sync_batch_norm: replicas cannot share the statistics of micro-batches; expected "
                "false, or accumulate: 1"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size: {self.batch_size} is no multiple of accumulate, {self.accumulate}"
            )
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
        RLELossConfig
        | DirectLossConfig
        | L1LossConfig
        | L2LossConfig
        | DensityLossConfig
        | HeatmapLossConfig,
        Field(discriminator="kind"),
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
                f"train.map_weight: found {self.train.map_weight} for a model without maps of "
                "soft_argmax; expected 0, or model.head soft_argmax"
            )
        return self

    @model_validator(mode="after")
    def _heatmaps_have_a_loss_of_their_own(self):
        head = getattr(self.model, "head", None)
        if (self.loss.kind == "heatmap") != (head == "heatmap"):
            found = f"model.head {head}" if head else f"model.kind {self.model.kind}"
            raise ValueError(
                f"loss.kind: found {self.loss.kind} with {found}; expected loss heatmap with head "
                "heatmap, and any other with head pooled or soft_argmax"
            )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self):
        trained = getattr(self.model, "trained", "all")
        if trained != "all":
            learning = ("rle", "direct") + (("laplace", "gaussian") if trained == "sigma" else ())
            if self.loss.kind not in learning:
                raise ValueError(
                    f"model.trained: found {trained} with loss.kind {self.loss.kind}, of which "
                    f"nothing would learn; expected all, or loss {', '.join(learning)}"
                )
            if trained == "none" and not self.loss.flow_layers:
                raise ValueError(
                    "loss.flow_layers: found 0 with model.trained none: nothing would learn; "
                    "expected 1 or more"
                )
            if self.train.map_weight:
                raise ValueError(
                    f"train.map_weight: found {self.train.map_weight} with model.trained {trained},"
                    " under which maps stay as they are; expected 0"
                )
        return self

    @model_validator(mode="after")
    def _service_hands_out_numbers(self):
        if self.data.service and self.data.records:
            raise ValueError(
                "data.service: set with data.records, which are read in order, not by number; "
                "expected one of the two"
            )
        if self.data.service and self.train.deterministic:
            raise ValueError(
                "data.service: set with train.deterministic, and gives batches as they come; "
                "expected one of the two"
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

    def open_training(self) -> PhotographedPeople | PackedPeople:
        """The people to train on: of the source's photographs, or of `data.records`.

        Raises:
            ConfigError: if the records are of another skeleton, or too small for these crops.
            DataError: for data that cannot be used.
        """
        if not self.data.records:
            return PhotographedPeople(self.open_source("train"))
        people = PackedPeople(self.data.records)
        if people.skeleton != self.data.source.skeleton:
            raise ConfigError(
                f"data.records: {self.data.records} holds people with the joints of "
                f"'{people.skeleton.name}'; expected '{self.data.source.skeleton.name}', as "
                "data.source has"
            )
        people.check(self.input_format, self.data.augmentation)
        return people

    def save(self, path: Path) -> None:
        """Writes it with every default filled in."""
        text = StringIO()
        YAML(typ="safe", pure=True).dump(self.model_dump(mode="json"), text)
        write_whole(path, text.getvalue())


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Reads and validates a recipe.

    Args:
        path: A YAML file.
        overrides: `section.key=value` each, the value in YAML; applied before validation.

    Raises:
        ConfigError: names the file, the key, what was found and what was expected; a line for
            each problem.
    """
    values = read_values(Path(path), overrides)
    return validated(RunConfig, values, " --set ".join([str(path), *overrides]))
