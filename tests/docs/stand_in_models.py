"""The stand-in trainer of the worker tests, whose steps take no time and whose export is a network that answers."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.serving import networks
from tests.workers import quick_models

quick_models.time.sleep = lambda _seconds: None


def export(_weights, out, _odd):
    dimensions = json.loads((out.parent / "spec.json").read_text())["network"]["dimensions"]
    classes = json.loads((Path(sys.argv[sys.argv.index("--data") + 1]) / "dataset.json").read_text())["classes"]
    content, facts = (networks.blur(), {}) if dimensions == 2 else (networks.blur_3d(), {})
    if dimensions == 2 and len(classes) > 2:
        content, facts = networks.bands(len(classes)), {"classes": classes}
    sha256 = quick_models.written(out / "model.onnx", content)
    (out / "manifest.json").write_text(json.dumps(networks.manifest(content, dimensions=dimensions, **facts)))
    quick_models.tell("done", onnx="model.onnx", manifest="manifest.json", onnx_sha256=sha256, verification={})
    return 0


quick_models.export = export

if __name__ == "__main__":
    sys.exit(quick_models.main())
