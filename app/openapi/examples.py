"""Example answers for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from app.schemas.jobs import TRAIN_EXAMPLE

ID = "01936f5e-7c00-7000-8000-000000000001"
WHEN = "2026-01-05T10:00:00Z"
SHA256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"


def shown(status: int, value: Any) -> dict[int | str, dict[str, Any]]:
    """The `responses` entry that shows what a successful answer looks like."""
    return {status: {"content": {"application/json": {"example": value}}}}


def listed(value: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The same for a page of a list."""
    return shown(200, {"items": [value], "next_cursor": None})


JOB = {
    "id": ID,
    "kind": "train",
    "title": "Train membranes on isbi12@1",
    "parent": None,
    "state": "running",
    "created_at": WHEN,
    "submitted_by": "ts_ab12cd34",
    "started_at": WHEN,
    "finished_at": None,
    "attempt": 1,
    "progress": {
        "phase": "train",
        "fraction": 0.31,
        "step": 1240,
        "steps": 4000,
        "epoch": 12,
        "seconds_per_step": 0.11,
        "eta_s": 303.6,
        "queue_position": None,
    },
    "error": None,
    "result": None,
    "spec": TRAIN_EXAMPLE,
    "links": {
        "self": f"/v1/jobs/{ID}",
        "events": f"/v1/jobs/{ID}/events",
        "log": f"/v1/jobs/{ID}/log",
        "dataset": "/v1/datasets/isbi12/versions/1",
    },
}

ALIAS = {"alias": "champion", "version": 3, "moved_at": WHEN, "etag": '"3-1767607200.000000"'}

MOVE = {
    "alias": "champion",
    "from_version": 2,
    "to_version": 3,
    "moved_at": WHEN,
    "moved_by": "ts_4fK1x9Qz",
    "gate": {
        "dataset": "isbi12@1",
        "bounds": {"min_cldice": 0.9},
        "figures": {"dice": 0.83, "cldice": 0.92, "beta0_error": 1.4},
    },
}

MODEL = {
    "id": ID,
    "name": "membranes",
    "created_at": WHEN,
    "latest": 3,
    "aliases": [ALIAS],
    "links": {
        "self": "/v1/models/membranes",
        "versions": "/v1/models/membranes/versions",
        "aliases": "/v1/models/membranes/aliases",
    },
}

MODEL_VERSION = {
    "id": ID,
    "model": "membranes",
    "version": 3,
    "ref": "membranes:3",
    "created_at": WHEN,
    "source": "trained",
    "aliases": ["champion"],
    "dataset": "isbi12@1",
    "job": ID,
    "training_s": 412.0,
    "spec": TRAIN_EXAMPLE,
    "metrics": {"dice": 0.83, "cldice": 0.92, "beta0_error": 1.4, "beta1_error": 2.1},
    "manifest": {
        "format": "toposerve-manifest/1",
        "channels": 1,
        "classes": ["background", "membrane"],
        "threshold": 0.5,
        "tile": [512, 512],
    },
    "software": {"torch": "2.13.0", "onnx": "1.20.0"},
    "onnx": {"sha256": SHA256, "bytes": 1882423, "href": "/v1/models/membranes/versions/3/onnx"},
    "safetensors": {"sha256": SHA256, "bytes": 1867412, "href": "/v1/models/membranes/versions/3/safetensors"},
    "links": {
        "self": "/v1/models/membranes/versions/3",
        "manifest": "/v1/models/membranes/versions/3/manifest.json",
        "job": f"/v1/jobs/{ID}",
    },
}

COUNTED = {
    "pixels": {"background": 5201832, "membrane": 1089624},
    "ignored": 0,
    "fg_fraction": 0.173,
    "betti": {"membrane": {"mean": [1.8, 55.3], "min": [1, 40], "max": [4, 71]}},
}

DATASET_VERSION = {
    "id": ID,
    "dataset": "isbi12",
    "version": 1,
    "ref": "isbi12@1",
    "created_at": WHEN,
    "digest": SHA256,
    "classes": ["background", "membrane"],
    "label_map": {"membrane": 0},
    "channels": 1,
    "dimensions": 2,
    "spacing_mm": None,
    "pairs": 24,
    "statistics": (
        {"pairs": 24, "splits": {"undecided": 24}, "shapes": {"512 x 512": 24}, "dtypes": {"uint8": 24}} | COUNTED
    ),
    "warnings": [
        {
            "code": "tiny_islands",
            "detail": (
                "2 components of membrane have fewer than 10 pixels; each counts as one in the Betti numbers. Remove"
                " them if they are slips."
            ),
            "item": "07",
        }
    ],
    "links": {
        "self": "/v1/datasets/isbi12/versions/1",
        "dataset": "/v1/datasets/isbi12",
        "items": "/v1/datasets/isbi12/versions/1/items",
    },
}

DATASET = {
    "id": ID,
    "name": "isbi12",
    "created_at": WHEN,
    "versions": 1,
    "latest": DATASET_VERSION,
    "links": {"self": "/v1/datasets/isbi12", "versions": "/v1/datasets/isbi12/versions"},
}

PAIRING = {
    "pairs": [
        {"name": "p01/scan", "image": "p01/scan.nii.gz", "mask": "p01/seg.nii.gz", "split": None, "group": "p01"}
    ],
    "count": 1,
    "is_known": False,
    "patterns": ["*/scan.nii.gz with */seg.nii.gz"],
    "ignored": ["README.md"],
}

DATASET_ITEM = {
    "position": 0,
    "name": "00",
    "image": ID,
    "shape": [512, 512],
    "split": None,
    "group": None,
    "mask_sha256": SHA256,
    "statistics": {
        "pixels": {"background": 216743, "membrane": 45401},
        "ignored": 0,
        "fg_fraction": 0.173,
        "betti": {"membrane": [2, 51]},
    },
    "links": {"image": f"/v1/images/{ID}", "preview": f"/v1/images/{ID}/preview.png"},
}

PLAN = {
    "dataset": "isbi12@1",
    "training": {
        "kind": "train",
        "dataset": "isbi12@1",
        "model": "isbi12",
        "network": {"name": "unet", "dimensions": 2, "channels": [32, 64, 128, 256, 320]},
        "patch": [256, 256],
        "batch": 8,
        "steps": 1000,
        "scaling": "image",
        "folds": 5,
    },
    "reasons": [
        {
            "field": "patch",
            "value": [256, 256],
            "reason": "the median image is 512 x 512; at most 256 a side, multiples of 16",
        }
    ],
    "memory": {"estimated_bytes": 2000000000, "limit_bytes": 8589934592, "limit_from": "the request"},
    "notes": ['Which loss helps is not planned but measured: send the training with `"recipe": "auto"`.'],
}

COMPARISON = {
    "job": ID,
    "state": "succeeded",
    "verdict": (
        "soft_cldice lowers the Betti error of baseline, 27.6 an image, by 5 (-18 %, 95 % interval -7.2 to -3,"
        " p = 0.002 corrected, 16 images), Dice +0.000."
    ),
    "helps": ["soft_cldice"],
    "baseline": "baseline",
    "images": 16,
    "complete": True,
    "candidates": [
        {
            "name": "soft_cldice",
            "baseline": False,
            "trainings": 2,
            "measured": 2,
            "failures": [],
            "seconds_per_step": 0.41,
            "peak_bytes": 912_000_000,
            "figures": {
                "betti_error": {
                    "spread": {"mean": 22.6, "sd": 1.8},
                    "rank": 1.2,
                    "contrast": {
                        "images": 16,
                        "mean": -5.0,
                        "low": -7.2,
                        "high": -3.0,
                        "p": 0.001,
                        "p_holm": 0.002,
                        "better": 14,
                        "worse": 1,
                    },
                }
            },
        }
    ],
    "trainings": [
        {
            "job": ID,
            "candidate": "soft_cldice",
            "network": None,
            "fold": 0,
            "seed": 0,
            "state": "succeeded",
            "reason": None,
            "figures": {"dice": 0.812, "betti_error": 22.9},
        }
    ],
    "equal_dice": [],
}
