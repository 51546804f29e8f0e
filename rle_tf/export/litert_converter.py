"""TensorFlow Lite's converter, for `litert.export_litert` to run in a process of its own.

    python -m rle_tf.export.litert_converter SAVED_MODEL FILE PRECISION SIGNATURES [CALIBRATION]

SIGNATURES are names with commas between them; CALIBRATION is an .npy of crops.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from rle_tf.export.formats import Precision


def convert(
    saved_model: str,
    signatures: list[str],
    precision: Precision,
    crops: np.ndarray | None = None,
    keep_float: Callable[[schema.ModelT], Sequence[str]] | None = None,
) -> bytes:
    """The file's bytes.

    Args:
        saved_model: A version's folder.
        signatures: Names of those to convert.
        precision: What the file holds.
        crops: (N, H, W, 3) uint8, for int8 alone.
        keep_float: For int8: names of the nodes that stay in float; by default the stem's and the
            heads'. `docs/litert.md` has the measurements.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=signatures)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision != Precision.float32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == Precision.float16:
        converter.target_spec.supported_types = [tf.float16]
    if precision != Precision.int8:
        return converter.convert()

    beside = _inputs_beside_the_crop(saved_model, signatures)

    def samples() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        # All signatures see the same; their ranges differ but by a flip test's mirror image.
        for crop in crops:
            for signature in signatures:
                yield signature, {"image": crop[None], **beside[signature]}

    converter.representative_dataset = samples
    # The converter itself has no way to leave some nodes in float.
    debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=samples)
    calibrated = schema.ModelT.InitFromPackedBuf(debugger.calibrated_model)
    names = keep_float(calibrated) if keep_float else stem(calibrated) + heads(calibrated)
    debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=names)
    return debugger.get_nondebug_quantized_model()


def _inputs_beside_the_crop(
    saved_model: str, signatures: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Heads alone meet them, and heads are not quantised: any number will do."""
    loaded = tf.saved_model.load(saved_model)
    return {
        name: {
            spec.name: np.ones([n or 1 for n in spec.shape], spec.dtype.as_numpy_dtype)
            for spec in loaded.signatures[name].structured_input_signature[1].values()
            if spec.name != "image"
        }
        for name in signatures
    }


def stem(model: schema.ModelT) -> list[str]:
    """Names of the nodes up to the first depthwise convolution, where there is one.

    That one rounds most in a MobileNet (2.4 steps of its output, where others round 0.3 to 1.8),
    and all others see it.
    """
    depthwise = schema.BuiltinOperator.DEPTHWISE_CONV_2D
    names = []
    for graph in model.subgraphs:
        kinds = [model.operatorCodes[node.opcodeIndex].builtinCode for node in graph.operators]
        end = kinds.index(depthwise) + 1 if depthwise in kinds else 0
        names += _names(graph, graph.operators[:end])
    return names


def heads(model: schema.ModelT) -> list[str]:
    """Names of the nodes behind the features: what is computed from the last maps and is no map
    itself, and where there is a soft-argmax the convolution that scores its cells.

    8 bits hold 256 values of a sigma, of its logarithm and of a coordinate, and each is rounded
    anew on the way to the outputs.
    """
    operator = schema.BuiltinOperator
    convolutions = {operator.CONV_2D, operator.DEPTHWISE_CONV_2D}
    names = []
    for graph in model.subgraphs:
        kinds = [model.operatorCodes[node.opcodeIndex].builtinCode for node in graph.operators]
        # Tensors on the way to a convolution, and to a softmax. Nodes stand in an order that they
        # can run in.
        to_convolution, to_softmax = set(), set()
        for kind, node in reversed(list(zip(kinds, graph.operators, strict=True))):
            for way, starts in (
                (to_convolution, kind in convolutions),
                (to_softmax, kind == operator.SOFTMAX),
            ):
                if starts or not way.isdisjoint(node.outputs):
                    way.update(node.inputs)
        of_scores, nodes = set(), []
        for kind, node in zip(kinds, graph.operators, strict=True):
            outputs = set(node.outputs)
            scores = kind in convolutions and not to_softmax.isdisjoint(outputs)
            behind = not of_scores.isdisjoint(node.inputs)
            is_map = any(np.size(graph.tensors[tensor].shape) == 4 for tensor in outputs)
            if to_convolution.isdisjoint(outputs) and (
                scores or behind or (kind not in convolutions and not is_map)
            ):
                nodes.append(node)
                of_scores |= outputs if scores or behind else set()
        names += _names(graph, nodes)
    return names


def _names(graph: schema.SubGraphT, nodes: Sequence[schema.OperatorT]) -> list[str]:
    return [graph.tensors[tensor].name.decode() for node in nodes for tensor in node.outputs]


if __name__ == "__main__":
    saved_model, file, precision, signatures, *calibration = sys.argv[1:]
    crops = np.load(calibration[0]) if calibration else None
    model = convert(saved_model, signatures.split(","), Precision(precision), crops)
    Path(file).write_bytes(model)
