"""Drives MONAI Label's own client against a gateway: `python monai_client.py URL KEY FOLDER`.

The gateway holds a model `blur` (one sigmoid, class `vessel`); the folder holds `scan.nii.gz`, `other.nii.gz` and
`mask.nii.gz`. An empty KEY means that the gateway is open. Prints as JSON what the client made of every answer.
"""

import json
import sys
from pathlib import Path

from monailabel.client.client import MONAILabelClient, MONAILabelClientException


def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except MONAILabelClientException as error:
        return error.msg
    return None


def kept(path, name):
    """The file that the client saved, under a name that the caller of this program knows."""
    target = Path(path).with_name(f"{name}{'.nrrd' if path.endswith('.nrrd') else '.nii.gz'}")
    return Path(path).replace(target).name


def main(url, key, folder):
    client = MONAILabelClient(f"{url}/monai", tmpdir=folder, client_id="slicer")
    scan, mask = f"{folder}/scan.nii.gz", f"{folder}/mask.nii.gz"
    found = {"auth": client.auth_enabled()}
    if key:
        found["no key"] = refused(client.info)
        found["wrong key"] = refused(client.auth_token, "ann", "secret")
        client.update_auth(client.auth_token("ann", key))
        found["token"] = client.auth_valid_token()
        client = MONAILabelClient(f"{url}/monai", tmpdir=folder, client_id="slicer")  # as Slicer does for each call
        client.update_auth({"token_type": "Bearer", "access_token": key})
    session = client.create_session(scan)
    found["session"] = client.get_session(session["session_id"])
    image, params = client.infer("blur", "", {"topology": True}, session_id=session["session_id"])
    found["of a session"] = [kept(image, "session"), params]
    found["forgotten"] = client.remove_session(session["session_id"])
    found["session is gone"] = refused(client.get_session, session["session_id"])

    found["uploaded"] = client.upload_image(scan, "scan one")
    client.upload_image(f"{folder}/other.nii.gz", "other")
    found["next"] = client.next_sample("topological_uncertainty", {"model": "blur"})
    image, params = client.infer("blur", "scan one", {"result_extension": ".nrrd"})
    found["by name"] = [kept(image, "named"), params]
    image, params = client.infer("blur", "", {"threshold": 0.6, "expect": "euler:99"}, file=scan)
    found["of a file"] = [kept(image, "sent"), params]
    meaning = {"label_info": [{"name": "vessel", "idx": 1}]}
    found["saved"] = client.save_label("scan one", mask, "final", meaning)
    found["label"] = kept(client.download_label("scan one", "final"), "label")
    found["next after a label"] = client.next_sample("newest", {})
    found["datastore"] = client.datastore()
    found["info"] = client.info()
    found["train status"] = refused(client.train_status)
    found["running"] = client.train_status(check_if_running=True)
    found["stopped"] = client.train_stop()
    found["train"] = refused(client.train_start, "blur", {})
    found["unknown model"] = refused(client.infer, "nothing", "scan one", {})
    found["unknown image"] = refused(client.infer, "blur", "undefined", {})
    found["wrong mask"] = refused(client.save_label, "other", mask, "final", {"label_info": [{"name": "a", "idx": 9}]})
    print(json.dumps(found))


main(*sys.argv[1:])
