"""Requests to predict: options that fit together, one image through a network, the answer kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from app.admission import jobs
from app.admission.images import columns, known
from app.errors import Invalid
from app.imaging import Header
from app.imaging.dicom.reports import encode_report
from app.imaging.dicom.writing import Author, Kind, encode_segmentation
from app.imaging.spacing import sized
from app.roles import Principal
from app.schemas.jobs import PredictSpec
from app.schemas.predictions import PredictOptions
from app.schemas.topology import SkeletonGraph
from app.services import Services
from app.serving import analysis, prediction, segmentation_objects
from app.serving.answers import MIXED, REAL, TIFF, positions, topology
from app.serving.contract import Manifest
from app.serving.matching_grid import matched
from app.serving.pipeline import Stop, Stopwatch, fit
from app.serving.prediction import Answer, Question, expected_of
from app.serving.registry import read_manifest
from app.serving.segmentation_objects import DICOM
from app.store import audit, images, models, predictions, tables
from app.upload import Upload

JSON = "application/json"


def check(options: PredictOptions, *, later: bool = False) -> None:
    """Refuse options that would change nothing, or two that contradict each other."""
    everything = (
        "What is predicted later is stored with every artifact and read from there, so {} decides nothing. Leave it"
        " out."
    )
    refusals = (
        (
            "variant",
            options.variant is not None and (options.store or later),
            (
                "A stored prediction names the version that made it, and that means the full network. Leave variant or"
                " store out."
            ),
        ),
        (
            "strict",
            options.strict and not options.expect,
            "strict insists on what `expect` says. Send `expect`, or leave strict out.",
        ),
        (
            "repair_margin",
            options.repair_margin is not None and not options.repair,
            "repair_margin says how `repair` decides. Send repair=true, or leave repair_margin out.",
        ),
        (
            "repair_margin",
            options.repair_margin is not None and bool(options.expect),
            (
                "With `expect` the mask is repaired until it is as expected, and repair_margin decides nothing. Leave"
                " one of them out."
            ),
        ),
        (
            "skeleton",
            options.skeleton and options.artifact not in (None, "skeleton"),
            f"skeleton=true asks for another picture than artifact={options.artifact}. Leave one of them out.",
        ),
        ("artifact", later and options.artifact is not None, everything.format("artifact")),
        ("skeleton", later and options.skeleton, everything.format("skeleton")),
        ("segmentation", later and options.segmentation is not None, everything.format("segmentation")),
    )
    for name, wrong, sentence in refusals:
        if wrong:
            raise Invalid(sentence, errors=[{"pointer": f"/query/{name}", "detail": sentence}])


@contextmanager
def predicted(
    services: Services,
    caller: Principal,
    version: tables.ModelVersion,
    options: PredictOptions,
    upload: Upload,
    stop: Stop,
    choose: Callable[[Header, Manifest], str] = lambda _header, _manifest: JSON,
) -> Iterator[tuple[Answer, str]]:
    """The answer about an uploaded image and the media type in which it is wanted; counted in the statistics of the
    version until the context ends.

    choose  the media type, from what the image says of itself and what the network can answer
    """
    predictor = services.registry.get(caller.project_id, version, options.variant)
    check(options)
    expected = expected_of(options.expect, predictor.manifest)
    phases = Stopwatch()
    with services.registry.statistics.request(version.id, stop.waited_ms) as counted:
        with phases("decode"):
            form = choose(services.decoders.read_header(upload.file), predictor.manifest)
            picture = services.decoders.decode(upload.file)
            if options.store:
                picture = known(services, caller, upload.sha256, picture, options.spacing_mm)
            else:
                picture = sized(picture, options.spacing_mm)
        question = Question(
            threshold=options.threshold,
            probability=options.store
            or options.artifact in REAL
            or form == TIFF
            or (form == DICOM and options.segmentation == "fractional"),
            uncertainty=options.store or (options.artifact == "uncertainty" and form != JSON),
            topology=bool(
                options.topology or options.artifact == "report" or (options.topology is None and form in (JSON, MIXED))
            ),
            margins=options.margins,
            expected=expected,
            strict=options.strict,
            repair=options.repair,
            repair_margin=options.repair_margin,
            other_spacing=options.other_spacing,
        )
        answer = prediction.ask(predictor, picture, question, stop=stop, phases=phases)
        del picture  # what follows needs its memory, not its pixels
        yield answer, form
        counted.timings_ms = answer.timings_ms


def keep(
    services: Services, caller: Principal, version: tables.ModelVersion, upload: Upload, answer: Answer
) -> Callable[[Session], tables.Prediction]:
    """Store the bytes of an image and of what was predicted on it; what is returned writes the rows that name them."""
    kept = prediction.stored(answer, version, services.blobs, caller.project_id, png_level=services.settings.png_level)
    facts: dict[str, Any] = columns(answer.picture, upload)
    services.blobs.put_file(caller.project_id, upload.file)

    def rows(session: Session) -> tables.Prediction:
        image, _ = images.add(session, caller.project_id, upload.sha256, **facts)
        row = predictions.add(session, image_id=image.id, **kept)
        audit.note(session, caller, "prediction.store", row.id)
        return row

    return rows


def skeleton_graph(
    services: Services, session: Session, row: tables.Prediction, class_name: str | None
) -> SkeletonGraph:
    """The graph of the skeleton of a stored mask: of one class, or of all foreground when no class is named."""
    classes = predictions.classes_of(session, row)
    if class_name is not None and class_name not in classes[1:]:
        sentence = f"There is no class {class_name[:64]!r} in this prediction. Classes: {', '.join(classes[1:])}."
        raise Invalid(sentence, errors=[{"pointer": "/query/class_name", "detail": sentence}])
    mask = services.decoders.decode_mask(services.blobs.read(row.project_id, row.artifacts["mask"]["sha256"]))
    labels = positions(mask, classes)
    chosen = labels > 0 if class_name is None else labels == classes.index(class_name)
    spacing = session.get_one(tables.Image, row.image_id).spacing_mm
    return analysis.whole_graph(chosen, tuple(spacing) if spacing else None)


def mask_as_dicom(services: Services, session: Session, row: tables.Prediction, kind: Kind) -> bytes:
    """A stored mask as a DICOM segmentation of its image; Invalid where the image is not DICOM."""
    source, labels, manifest, by = _of_dicom(services, session, row)
    return encode_segmentation(source, labels, manifest.classes, by, kind=kind)


def report_as_dicom(services: Services, session: Session, row: tables.Prediction) -> bytes:
    """What a stored mask has, counted now, as a structured report on its image; Invalid where that is not DICOM."""
    source, labels, manifest, by = _of_dicom(services, session, row)
    spacing = session.get_one(tables.Image, row.image_id).spacing_mm
    return encode_report(source, topology(labels, manifest.classes, spacing), by, spacing_mm=spacing)


def _of_dicom(
    services: Services, session: Session, row: tables.Prediction
) -> tuple[io.BytesIO, np.ndarray, Manifest, Author]:
    """The DICOM image of a stored prediction, the mask as positions of classes, their manifest, and who made it."""
    image = session.get_one(tables.Image, row.image_id)
    if not image.format.startswith("dicom"):
        raise Invalid(
            "The image of this prediction is not DICOM, so no DICOM object can refer to it. Take the mask as PNG or"
            " NIfTI, and what was counted as JSON."
        )
    version = session.get_one(tables.ModelVersion, row.model_version_id)
    mask = services.decoders.decode_mask(services.blobs.read(row.project_id, row.artifacts["mask"]["sha256"]))
    manifest = read_manifest(version)
    by = segmentation_objects.author(models.ref_of(session, version), manifest, row.artifacts["mask"])
    source = io.BytesIO(services.blobs.read(row.project_id, image.sha256))
    return source, positions(mask, manifest.classes), manifest, by


def later(
    services: Services,
    caller: Principal,
    version: tables.ModelVersion,
    options: PredictOptions,
    upload: Upload,
    *,
    request_id: str | None,
) -> Callable[[Session], tables.Job]:
    """Store the bytes of an image; what is returned queues the job that predicts it.

    What can be refused now is refused now.
    """
    manifest = read_manifest(version)
    check(options, later=True)
    expected_of(options.expect, manifest)
    picture = known(services, caller, upload.sha256, services.decoders.decode(upload.file), options.spacing_mm)
    fit(matched(picture, manifest, options.other_spacing).picture.pixels, manifest)
    services.blobs.put_file(caller.project_id, upload.file)

    def rows(session: Session) -> tables.Job:
        image, _ = images.add(session, caller.project_id, upload.sha256, **columns(picture, upload))
        spec = PredictSpec(
            kind="predict",
            model=models.ref_of(session, version),
            images=[image.id],
            threshold=options.threshold,
            topology=options.topology is not False,
            margins=options.margins,
            expect=options.expect,
            strict=options.strict,
            repair=options.repair,
            repair_margin=options.repair_margin,
            other_spacing=options.other_spacing,
        )
        return jobs.submit(session, caller, spec, services.settings, request_id=request_id)

    return rows
