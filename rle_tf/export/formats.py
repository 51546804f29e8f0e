"""What a regressor can be exported as; without TensorFlow, for the command line's help, and for
processes whose memory is measured."""

from enum import StrEnum


class Format(StrEnum):
    """A format of an exported model; torch is no graph but a state dict, with the flow."""

    savedmodel = "savedmodel"
    litert = "litert"
    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"


class Precision(StrEnum):
    """What a LiteRT file holds and computes in. Inputs and outputs are the same in all.

    Attributes:
        float32: The SavedModel's own weights and arithmetic.
        float16: Weights of half the size; arithmetic in float32 where the processor has no other.
        dynamic_int8: Weights of a quarter of the size; activations are quantised as they come.
        int8: Weights and activations of the backbone, by calibration; the heads stay float32.
    """

    float32 = "float32"
    float16 = "float16"
    dynamic_int8 = "dynamic_int8"
    int8 = "int8"


def crops_signature(flip_test: bool) -> str:
    """Name of the signature that takes crops, in SavedModels and LiteRT files.

    A bare LiteRT interpreter sees the first in the alphabet: `serving_default`.
    """
    return "serving_default_flip_test" if flip_test else "serving_default"
