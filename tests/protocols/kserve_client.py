"""Drives kserve's client against a gateway: `python kserve_client.py URL KEY`.

The gateway holds a model `blur` (one sigmoid). Prints as JSON what the client made of every answer; the caller
compares.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 1, 33, 47)).astype(np.float32)


def request(model="blur", *, binary=False, outputs=None, image=IMAGE, **parameters):
    tensor = InferInput("image", list(image.shape), "FP32")
    tensor.set_data_from_numpy(image, binary_data=binary)
    wanted = outputs and [RequestedOutput(name, {"binary_data": raw}) for name, raw in outputs.items()]
    return InferRequest(
        model_name=model,
        infer_inputs=[tensor],
        request_id="scan-7",
        request_outputs=wanted,
        parameters=parameters or None,
    )


async def refused(call):
    try:
        await call
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]
    return None


async def main(url, key):
    headers = {"Authorization": f"Bearer {key}"}
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=1)) as client:

        async def infer(asked, model="blur"):
            # dict(headers): the client writes the lengths of one request into the headers it was given.
            return await client.infer(url, asked, model_name=model, headers=dict(headers))

        def told(answer):
            tensors = {output.name: output.as_numpy() for output in answer.outputs}
            facts = {"id": answer.id, "model": answer.model_name}  # it drops the version
            return facts | {name: [str(values.dtype), values.tolist()] for name, values in tensors.items()}

        some = {"mask": True, "betti": True, "probability": False}
        found = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": [
                await client.is_model_ready(url, name, headers=headers)
                for name in ("blur", "blur/versions/1", "blur/versions/9", "unknown")
            ],
            "json": told(await infer(request())),
            "as a dict": told(
                await infer(
                    {
                        "id": "scan-7",
                        "inputs": [
                            {
                                "name": "image",
                                "shape": list(IMAGE.shape),
                                "datatype": "FP32",
                                "data": IMAGE.ravel().tolist(),
                            }
                        ],
                    }
                )
            ),
            "binary in": told(await infer(request(binary=True))),
            "binary out": told(await infer(request(binary_data_output=True, topology=True))),
            "binary both, some outputs": told(await infer(request(binary=True, outputs=some))),
            "one version": told(await infer(request(binary=True), "blur/versions/1")),
            "unknown": await refused(infer(request("unknown"), "unknown")),
            "another in the body": await refused(infer(request("bands"))),
            "wrong shape": await refused(infer(request(image=IMAGE[:, :, 0]))),
            "wrong output": await refused(infer(request(outputs={"logits": False}))),
            "no key": await refused(client.infer(url, request(), model_name="blur")),
        }
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:]))
