"""LitServe, raw body in and out: python lit_service.py PORT WORKERS."""

import sys
from typing import Annotated

import litserve
from fastapi import Body, Response
from work import Segmenter


class Segmentation(litserve.LitAPI):
    def setup(self, device):
        self.segment = Segmenter()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]):
        return request

    def predict(self, content):
        return self.segment(content)

    def encode_response(self, output):
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(Segmentation(), accelerator="cpu", workers_per_device=int(sys.argv[2]))
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")
