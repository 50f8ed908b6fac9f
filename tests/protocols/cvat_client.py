"""Runs integrations/cvat.py as CVAT does: `python cvat_client.py URL KEY MODEL IMAGE THRESHOLD`.

The function is loaded from its file, called with CVAT's own context, and its answer goes through the check that CVAT
makes before it stores annotations. Prints as JSON the labels and what CVAT decodes.
"""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import PIL.Image
from cvat_sdk import models
from cvat_sdk.auto_annotation import BadFunctionError
from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "client"))


def loaded():
    spec = importlib.util.spec_from_file_location("function", ROOT / "integrations" / "cvat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(url, key, model, path, threshold):
    function = loaded().create(model, url, key)
    labels = {label.id: label.name for label in function.spec.labels}
    image = PIL.Image.open(path)
    context = _DetectionFunctionContextImpl(
        frame_name=Path(path).name, conf_threshold=float(threshold) if threshold != "none" else None
    )
    drawn = function.detect(context, image)
    # A task that has the labels of the model under numbers of its own.
    of_task = [
        models.Label(id=100 + number, name=name, type="mask", attributes=[], sublabels=[])
        for number, name in labels.items()
    ]
    mapper = _AnnotationMapper(
        logging.getLogger(), function.spec.labels, of_task, allow_unmatched_labels=False, conv_mask_to_poly=False
    )
    _, shapes = mapper.validate_and_remap(drawn, 3)
    masks = {
        labels[shape.label_id - 100]: decode_mask(
            shape.points, image_width=image.width, image_height=image.height
        ).tolist()
        for shape in shapes
    }
    try:
        function.detect(_DetectionFunctionContextImpl(frame_name="", conv_mask_to_poly=True), image)
        polygons = ""
    except BadFunctionError as error:
        polygons = str(error)
    print(
        json.dumps(
            {"labels": labels, "frames": [shape.frame for shape in shapes], "masks": masks, "polygons": polygons}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
