"""BentoML, raw body in and out: WORKERS=2 bentoml serve bento_service:Segmentation --port PORT."""

import os
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from work import Segmenter


@bentoml.service(workers=int(os.environ["WORKERS"]))
class Segmentation:
    def __init__(self):
        self.segment = Segmenter()

    @bentoml.api
    def predict(
        self, content: Annotated[bytes, ContentType("image/png")], /
    ) -> Annotated[bytes, ContentType("image/png")]:
        return self.segment(content)
