"""What every peer does between PNG bytes and mask bytes.

The codecs and the runtime are those of the gateway, with one thread a process.
"""

import os

import imagecodecs
import numpy as np
import onnxruntime


class Segmenter:
    """Answers a grey PNG with a PNG mask; the network is the file that SEGMENTER_ONNX names."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["SEGMENTER_ONNX"], options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, content):
        pixels = imagecodecs.png_decode(content)
        scaled = ((pixels - pixels.mean(dtype=np.float64)) / (pixels.std(dtype=np.float64) + 1e-6)).astype(np.float32)
        probability = self._session.run(None, {"image": scaled[None, None]})[0][0, 0]
        mask = (probability > 0.5) * np.uint8(255)
        return imagecodecs.png_encode(
            mask, level=1, filter=imagecodecs.PNG.FILTER.UP, strategy=imagecodecs.PNG.STRATEGY.RLE
        )
