"""Drives nnInteractive's own client against a gateway: `python nninteractive_client.py URL KEY`.

The gateway holds a model `plain`, whose map is the image divided by 255. Prints as JSON what the client made of it.
"""

import json
import sys

import httpx
import numpy as np
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
from nnInteractive.inference.remote.remote_session import ServerAtCapacityError, SessionExpiredError


def picture():
    """Two bars along row 8 with a gap of two columns, and a ring that touches a third bar by a bridge."""
    image = np.zeros((1, 1, 32, 40), np.float32)
    image[0, 0, 7:10, 2:18] = image[0, 0, 7:10, 20:38] = 240
    image[0, 0, 8, 18:20] = 110  # the gap, where the map nearly says foreground
    image[0, 0, 20:27, 4:11] = 240
    image[0, 0, 22:25, 6:9] = 20  # a hole
    image[0, 0, 20:27, 16:24] = 240
    image[0, 0, 23, 11:16] = 140  # a bridge that hardly is one
    return image


def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, error.response.json()["detail"]]
    except (SessionExpiredError, ServerAtCapacityError) as error:
        return [type(error).__name__, str(error)]
    return None


def main(url, key):
    found = {"wrong key": refused(nnInteractiveRemoteInferenceSession, url, api_key="secret")}
    session = nnInteractiveRemoteInferenceSession(url, api_key=key)
    found["ping"], found["heartbeat"] = session.ping(), session.heartbeat()
    found["lease"] = session.lease_status()
    found["interactions"] = session.supported_interactions
    found["full"] = refused(nnInteractiveRemoteInferenceSession, url, api_key=key)
    found["no image"] = refused(session.add_point_interaction, (0, 8, 18), True)
    session.set_image(picture(), {"spacing": np.array([1.0, 0.5, 0.5])})
    found["shape"] = session.original_image_shape
    buffer = np.zeros((1, 32, 40), np.uint8)
    session.set_target_buffer(buffer)
    masks = {}

    def keep(name, box):
        masks[name] = {"box": box, "mask": buffer[0].tolist()}

    keep("network", session._predict())
    keep("connected", session.add_point_interaction((0, 8, 19), include_interaction=True))
    keep("cut", session.add_point_interaction((0, 23, 13), include_interaction=False))
    keep("nothing to do", session.add_point_interaction((0, 8, 5), include_interaction=True))
    keep("filled", session.add_point_interaction((0, 23, 7), include_interaction=True))
    found["undone"] = session.undo()
    keep("undone", session._last_paste_bbox)
    stroke = np.zeros((1, 32, 40), np.uint8)
    stroke[0, 23, 11:16] = 1
    keep("scribbled", session.add_scribble_interaction(stroke, include_interaction=True))
    crop = np.ones((1, 12, 1), np.uint8)
    box = [[0, 1], [3, 15], [28, 29]]
    keep("scribbled across", session.add_scribble_interaction(crop, False, interaction_bbox=box))
    session.add_point_interaction((0, 23, 20), include_interaction=False, run_prediction=False)
    keep("waited", session._last_paste_bbox)
    keep("predicted", session._predict())
    while session.undo():
        pass
    keep("all undone", session._last_paste_bbox)
    own = np.zeros((1, 32, 40), np.uint8)
    own[0, 2:5, 2:5] = own[0, 2:5, 7:10] = 1
    session.add_initial_seg_interaction(own)
    keep("own", session.add_point_interaction((0, 3, 6), include_interaction=True))
    session.reset_interactions()
    keep("reset", session._predict())
    found["masks"] = masks
    found["bbox"] = refused(session.add_bbox_interaction, [[0, 1], [2, 5], [2, 5]], True)
    found["outside"] = refused(session.add_point_interaction, (0, 99, 0), True)
    found["wrong crop"] = refused(
        session.add_scribble_interaction, crop, True, interaction_bbox=[[0, 1], [0, 2], [0, 2]]
    )
    found["empty scribble"] = refused(session.add_scribble_interaction, np.zeros((1, 32, 40), np.uint8), True)
    found["wrong buffer"] = refused(session.set_target_buffer, np.zeros((1, 2, 3), np.uint8))
    found["infinite"] = refused(session.set_image, np.full((1, 1, 9, 9), np.inf, np.float32))
    found["too large"] = refused(session.set_image, np.zeros((1, 1, 200, 200), np.uint8))
    session.close()
    again = nnInteractiveRemoteInferenceSession(url, api_key=key)
    httpx.post(f"{url}/release", headers=dict(again._http.headers))
    found["ended"] = refused(again.lease_status)
    print(json.dumps(found))


main(*sys.argv[1:])
