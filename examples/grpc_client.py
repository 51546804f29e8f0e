"""Poses of the people in a photograph, from TensorFlow Serving, over gRPC.

pip install tensorflow-serving-api
python examples/grpc_client.py photo.jpg --box 120 40 310 460 --model demo
"""

import argparse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub


def predict(
    address: str, model: str, photograph: bytes, boxes_xyxy: list, flip_test: bool
) -> dict[str, np.ndarray]:
    """The answer for one image: arrays by the names of `predict_image`'s outputs."""
    request = PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "predict_image_flip_test" if flip_test else "predict_image"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([photograph]))
    # Four zeros are no box: where requests are batched, Serving pads with a tensor's first number,
    # so that no tensor may be empty.
    boxes_xyxy = np.reshape(boxes_xyxy or [0] * 4, (1, -1, 4)).astype(np.float32)
    request.inputs["boxes_xyxy"].CopyFrom(tf.make_tensor_proto(boxes_xyxy))
    # Photographs are larger than the 4 MiB that gRPC allows a message by itself.
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        answer = PredictionServiceStub(channel).Predict(request, timeout=60)
    return {name: tf.make_ndarray(value)[0] for name, value in answer.outputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photograph", type=Path, help="JPEG or PNG")
    parser.add_argument(
        "--box", type=float, nargs=4, action="append", metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="of a person, in pixels; may be given several times; default: the whole image",
    )  # fmt: skip
    parser.add_argument("--model", default="demo")
    parser.add_argument("--address", default="127.0.0.1:8500")
    parser.add_argument("--flip-test", action="store_true")
    options = parser.parse_args()
    boxes = options.box or [[0, 0, 1e6, 1e6]]  # clipped to the image: all of it
    try:
        photograph = options.photograph.read_bytes()
        answer = predict(options.address, options.model, photograph, boxes, options.flip_test)
    except grpc.RpcError as error:
        raise SystemExit(f"{error.code().name}: {error.details()}") from None
    except OSError as error:
        raise SystemExit(str(error)) from None
    # Batched with images of more people, an answer has rows that are nobody.
    for person in np.flatnonzero(answer["present"]):
        print(f"person {person}: score {answer['person_score'][person]:.3f}")
        joints = zip(answer["keypoints_px"][person], answer["sigma_px"][person], strict=True)
        for joint, ((x, y), (sigma_x, sigma_y)) in enumerate(joints):
            line = f"  {joint:2d}  {x:7.1f} +- {sigma_x:5.1f}  {y:7.1f} +- {sigma_y:5.1f}"
            if "confidence" in answer:  # of a calibrated model
                line += f"  {answer['confidence'][person][joint]:.2f} sure"
            print(line)


if __name__ == "__main__":
    main()
