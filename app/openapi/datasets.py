"""What the OpenAPI document says about datasets: archives, lists of pairs, refusals."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from app import errors
from app.errors import Conflict, NotFound, may_answer
from app.openapi.bodies import FILE, TEXT, body, files, form, stored_before
from app.openapi.examples import DATASET_VERSION, PAIRING, shown
from app.openapi.images import PROBLEMS
from app.schemas.base import Name
from app.schemas.datasets import PAIRS_EXAMPLE, DatasetVersion

DatasetName = Annotated[Name, Path(description="The dataset's name.", examples=["isbi12"])]
BODY = body(
    files("application/zip", "application/gzip")
    | form(
        ["file"],
        file=FILE,
        name=TEXT,
        label_map=TEXT,
        mask_threshold=TEXT,
        resample=TEXT,
        spacing_mm=TEXT,
        pairing=TEXT,
    )
    | {"application/json": {"example": PAIRS_EXAMPLE, "schema": {"type": "object"}}},
    "A zip or tar.gz archive with `images/` and `masks/`, or in nnU-Net's layout; or JSON that names stored images.",
)
ARCHIVE = body(files("application/zip", "application/gzip") | form(["file"], file=FILE), "A zip or tar.gz archive.")
_MADE = shown(201, DATASET_VERSION)
_SAME = stored_before(
    DatasetVersion, _MADE, "This content was stored before under this name; this is the same version."
)
_REFUSALS = may_answer(
    *PROBLEMS,
    errors.UnsupportedArchive,
    errors.BadArchive,
    errors.BadDataset,
    errors.MaskMismatch,
    errors.UnknownLabel,
    Conflict,
    errors.Gone,
    errors.BlobCorrupt,
)
CREATED = _MADE | _SAME | _REFUSALS
ADDED = _MADE | _SAME | may_answer(NotFound) | _REFUSALS
PAIRED = shown(200, PAIRING) | may_answer(
    errors.UnsupportedArchive, errors.BadArchive, errors.BadDataset, errors.ExpandsTooLarge, errors.ChecksumMismatch
)
