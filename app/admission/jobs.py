"""Checks the rows that a job spec names, and completes the spec.

Names are resolved here and now, in the transaction that queues the job: `isbi12` becomes `isbi12@2` and its id, so that
a job means tomorrow what it meant when it was sent. Everything that is wrong is told at once, each with its field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import queue
from app.comparison.plan import Planned, trainings_of
from app.comparison.recipes import comparison_of, jobs_of, second_stage
from app.errors import Invalid, NotFound
from app.job_kinds import JobSpec
from app.roles import Principal
from app.schemas.base import Schema, by
from app.schemas.comparisons import CompareSpec
from app.schemas.jobs import AnalyseSpec, DicomwebSpec, EvaluateSpec, PredictSpec, TrainSpec
from app.schemas.losses import Prior, RuleTerm
from app.schemas.rules import Pair
from app.serving import expectations
from app.serving.contract import no_threshold
from app.settings import Settings
from app.store import audit, datasets, images, models, tables
from app.store.tables import DatasetItem, DatasetVersion, Image, ModelVersion

IDS = ("dataset_version_id", "start_from_version_id")
"""What a training is admitted with beside its spec."""
LABELLED = DatasetItem.mask_sha256.is_not(None)
TOLD = 20
"""Unknown ids that a refusal lists."""


class Complaints:
    """What is wrong with a spec, one {pointer, detail} each."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []

    def add(self, pointer: str, detail: str) -> None:
        """One more wrong field."""
        self.errors.append({"pointer": pointer, "detail": detail})

    def raise_if_any(self) -> None:
        """Refuse when something was added."""
        if self.errors:
            raise Invalid(" ".join(error["detail"] for error in self.errors[:3]), errors=self.errors)


def submit(
    session: Session, caller: Principal, spec: JobSpec, settings: Settings, *, request_id: str | None
) -> tables.Job:
    """Queue a job; Invalid when a worker could not run it."""
    admitted = admit(session, caller.project_id, spec, settings)
    whose: dict[str, Any] = {"project_id": caller.project_id, "submitted_by": caller.who, "request_id": request_id}
    planned = PLANS[spec.kind](session, caller.project_id, spec, admitted) if spec.kind in PLANS else ()
    job = _put(session, Planned(admitted, jobs=planned), **whose)
    audit.note(session, caller, "job.submit", job.id)
    return job


def _put(
    session: Session,
    planned: Planned,
    *,
    parent: tables.Job | None = None,
    after: tables.Job | None = None,
    **whose: Any,
) -> tables.Job:
    """The job, then those that belong to it."""
    spec = planned.spec if after is None else planned.spec | {"start_from_job_id": str(after.id)}
    related: dict[str, Any] = {"parent": parent, "after": after, "waits": bool(planned.jobs)}
    job = queue.put(session, kind=spec["kind"], spec=spec, **related, **whose)
    made: list[tables.Job] = []
    for each in planned.jobs:
        before = None if each.after is None else made[each.after]
        made.append(_put(session, each, parent=job, after=before, **whose))
        if each.starts_parent:
            job.spec = job.spec | {"start_from_job_id": str(made[-1].id)}
    session.flush()
    return job


def cancel(session: Session, caller: Principal, job_id: UUID, *, keep: bool) -> tables.Job:
    """Stop a job of the caller's project, keeping what it has learnt when asked to; Conflict when it has finished."""
    job = queue.request_cancel(session, queue.get(session, caller.project_id, job_id), keep=keep)
    audit.note(session, caller, "job.cancel", job.id)
    return job


def resume(session: Session, caller: Principal, job_id: UUID) -> tables.Job:
    """Queue a stopped or failed job of the caller's project again; Conflict when it is neither."""
    job = queue.request_resume(session, queue.get(session, caller.project_id, job_id))
    audit.note(session, caller, "job.resume", job.id)
    return job


def admit(session: Session, project_id: UUID, spec: JobSpec, settings: Settings) -> dict[str, Any]:
    """The spec with every default filled in and every name resolved; Invalid when a worker could not run it."""
    complaints = Complaints()
    names = ADMIT[spec.kind](session, project_id, spec, settings, complaints)
    complaints.raise_if_any()
    return spec.model_dump(mode="json") | names


def _admit_train(
    session: Session, project_id: UUID, spec: TrainSpec, settings: Settings, complaints: Complaints
) -> dict[str, Any]:
    if spec.steps > settings.max_steps:
        complaints.add("/steps", f"steps is {spec.steps}; at most {settings.max_steps} are accepted here.")
    names, version = _dataset(session, project_id, spec.dataset, complaints)
    if version is not None:
        _fits_data(session, spec, names["dataset"], version, complaints)
    if version is not None and spec.recipe == "auto" and not complaints.errors:
        try:
            comparison = comparison_of(spec, _free_groups(session, version))
        except ValueError as refused:
            complaints.add("/budget", str(refused))
        else:
            _admit_compare(session, project_id, comparison, settings, complaints)
            names |= {"stage": second_stage(spec)}
    if spec.start_from is not None:
        before, parent = _model(session, project_id, spec.start_from, complaints, "/start_from")
        names |= {"start_from": before.get("model"), "start_from_version_id": before.get("model_version_id")}
        if parent is not None and version is not None:
            _same_network(spec, before["model"], parent, version, complaints)
    return names


def _admit_compare(
    session: Session, project_id: UUID, spec: CompareSpec, settings: Settings, complaints: Complaints
) -> dict[str, Any]:
    """What is wrong with any of the trainings, each told once."""
    names: dict[str, Any] = {}
    trainings = [
        *(spec.training_of(loss, *spec.settings[0]) for loss in spec.losses),
        *(spec.training_of(spec.losses[0], *setting) for setting in spec.settings[1:]),
    ]
    for training in trainings:
        mine = Complaints()
        names = _admit_train(session, project_id, training, settings, mine)
        for error in mine.errors:
            pointer = error["pointer"] if error["pointer"] == "/dataset" else f"/training{error['pointer']}"
            if (error := {"pointer": pointer, "detail": error["detail"]}) not in complaints.errors:
                complaints.errors.append(error)
    if spec.pretraining is not None and spec.pretraining.steps > settings.max_steps:
        detail = f"pretraining.steps is {spec.pretraining.steps}; at most {settings.max_steps} are accepted here."
        complaints.add("/pretraining/steps", detail)
    named = {name: names[name] for name in ("dataset", "start_from") if name in names}
    ids = {name: value for name, value in names.items() if name in ("dataset", *IDS)}
    for field in ("shifted", "second_observer"):
        if "dataset_version_id" in ids and getattr(spec, field) is not None:
            ids |= _beside(session, project_id, field, getattr(spec, field), ids, complaints)
    return ids | {"training": spec.training.model_dump(mode="json") | named}


def _beside(
    session: Session, project_id: UUID, field: str, ref: str, ids: dict[str, Any], complaints: Complaints
) -> dict[str, Any]:
    """Another dataset version of a comparison: its name now and its id, when its images and classes are alike."""
    own = session.get_one(DatasetVersion, UUID(ids["dataset_version_id"]))
    found = Complaints()
    names, version = _dataset(session, project_id, ref, found)
    for error in found.errors:
        complaints.add(f"/{field}", error["detail"])
    if version is None:
        return {}
    for what in ("classes", "dimensions", "channels"):
        if getattr(version, what) != getattr(own, what):
            complaints.add(
                f"/{field}",
                f"{names['dataset']} has the {what} {getattr(version, what)} and {ids['dataset']} has"
                f" {getattr(own, what)}; they must be the same.",
            )
    images = [
        set(session.scalars(select(DatasetItem.image_id).where(DatasetItem.version_id == each.id, LABELLED)))
        for each in (own, version)
    ]
    if field == "second_observer" and not images[0] & images[1]:
        complaints.add(f"/{field}", f"{names['dataset']} has no mask of any labelled image of {ids['dataset']}.")
    if field == "shifted" and not images[1] - images[0]:
        complaints.add(f"/{field}", f"All images of {names['dataset']} are in {ids['dataset']} too. Name other ones.")
    return {field: names["dataset"], f"{field}_version_id": names["dataset_version_id"]}


def _admit_evaluate(
    session: Session, project_id: UUID, spec: EvaluateSpec, settings: Settings, complaints: Complaints
) -> dict[str, Any]:
    data, version = _dataset(session, project_id, spec.dataset, complaints)
    network, model = _model(session, project_id, spec.model, complaints)
    if version is not None and spec.split is not None and not _pairs(session, version, DatasetItem.split == spec.split):
        complaints.add(
            "/split", f"{data['dataset']} has no pair in the part {spec.split}. Leave `split` out to measure all."
        )
    if version is not None and model is not None:
        _same_meaning(network["model"], model, data["dataset"], version, complaints, classes=True)
    if version is not None:
        _named_classes_exist("/rules", "rule", spec.rules, data["dataset"], version, complaints)
    return data | network


def _admit_predict(
    session: Session, project_id: UUID, spec: PredictSpec, settings: Settings, complaints: Complaints
) -> dict[str, Any]:
    names, model = _model(session, project_id, spec.model, complaints)
    if spec.dataset is not None:
        data, version = _dataset(session, project_id, spec.dataset, complaints)
        names |= data
        if version is not None and model is not None:
            _same_meaning(names["model"], model, data["dataset"], version, complaints, classes=False)
    if model is not None:
        _can_be_asked(names["model"], model, spec, complaints)
    _images(session, project_id, spec.images or [], "/images", complaints)
    return names


def _can_be_asked(ref: str, model: ModelVersion, spec: PredictSpec, complaints: Complaints) -> None:
    """The threshold and the expectation mean something to this model."""
    manifest = model.manifest
    if spec.threshold is not None and manifest.get("activation") == "softmax":
        complaints.add("/threshold", no_threshold(ref, manifest["classes"]))
    if spec.expect is not None:
        try:
            expectations.read(spec.expect, manifest.get("classes", []), manifest.get("dimensions", 2))
        except Invalid as refused:
            complaints.add("/expect", refused.detail)


def _admit_analyse(
    session: Session, project_id: UUID, spec: AnalyseSpec, settings: Settings, complaints: Complaints
) -> dict[str, Any]:
    shapes = _images(session, project_id, spec.images, "/images", complaints)
    references = spec.references or []
    shapes |= _images(session, project_id, [each for each in references if each], "/references", complaints)
    for position, (image, reference) in enumerate(zip(spec.images, references, strict=False)):
        if reference and image in shapes and reference in shapes and shapes[image] != shapes[reference]:
            complaints.add(
                f"/references/{position}",
                f"The reference is {by(shapes[reference])} and its image {by(shapes[image])}; they must have one"
                " shape.",
            )
    return {}


def _admit_dicomweb(
    session: Session, project_id: UUID, spec: DicomwebSpec, settings: Settings, complaints: Complaints
) -> dict[str, Any]:
    names, model = _model(session, project_id, spec.model, complaints)
    if model is not None and spec.threshold is not None and model.manifest.get("activation") == "softmax":
        complaints.add("/threshold", no_threshold(names["model"], model.manifest["classes"]))
    if spec.pacs not in settings.pacs:
        known = ", ".join(sorted(settings.pacs)) or "none"
        complaints.add("/pacs", f"There is no PACS of that name; configured are: {known} (TOPOSERVE_PACS).")
    return names


ADMIT: dict[str, Callable[..., dict[str, Any]]] = {
    "train": _admit_train,
    "probe": _admit_train,
    "evaluate": _admit_evaluate,
    "predict": _admit_predict,
    "analyse": _admit_analyse,
    "compare": _admit_compare,
    "dicomweb": _admit_dicomweb,
}
"""What each kind checks; the names it resolved, as ids beside the spec."""


def _plan_compare(session: Session, project_id: UUID, spec: CompareSpec, admitted: dict[str, Any]) -> Sequence[Planned]:
    names = {name: admitted["training"][name] for name in ("dataset", "start_from")}
    ids = {name: admitted[name] for name in IDS if name in admitted}
    return trainings_of(spec, names | ids, admitted.get("shifted_version_id"))


def _plan_train(session: Session, project_id: UUID, spec: TrainSpec, admitted: dict[str, Any]) -> Sequence[Planned]:
    if spec.recipe != "auto":
        return ()
    _, version = datasets.resolve(session, project_id, spec.dataset)
    comparison = comparison_of(spec, _free_groups(session, version))
    return jobs_of(spec, comparison, {name: admitted[name] for name in ("dataset", "dataset_version_id")})


PLANS: dict[str, Callable[..., Sequence[Planned]]] = {"compare": _plan_compare, "train": _plan_train}
"""Kinds whose jobs have jobs of their own: what those are, from the spec and what was admitted."""


def _dataset(
    session: Session, project_id: UUID, ref: str, complaints: Complaints
) -> tuple[dict[str, Any], DatasetVersion | None]:
    try:
        dataset, version = datasets.resolve(session, project_id, ref)
    except NotFound as unknown:
        complaints.add("/dataset", unknown.detail)
        return {}, None
    return {"dataset": f"{dataset.name}@{version.number}", "dataset_version_id": str(version.id)}, version


def _model(
    session: Session, project_id: UUID, ref: str, complaints: Complaints, pointer: str = "/model"
) -> tuple[dict[str, Any], ModelVersion | None]:
    try:
        model, version = models.resolve(session, project_id, ref)
    except NotFound as unknown:
        complaints.add(pointer, unknown.detail)
        return {}, None
    return {"model": f"{model.name}:{version.number}", "model_version_id": str(version.id)}, version


def _fits_data(session: Session, spec: TrainSpec, ref: str, version: DatasetVersion, complaints: Complaints) -> None:
    """A network can be trained on this version with this patch and these folds."""
    if version.dimensions != spec.network.dimensions:
        complaints.add(
            "/network/dimensions",
            f"{ref} holds {version.dimensions}D images and the network is {spec.network.dimensions}D. Set"
            f" network.dimensions to {version.dimensions}, and give the patch as many sides.",
        )
    else:
        _patch_fits(session, spec, ref, version, complaints)
    if len(version.classes) < 2:
        complaints.add(
            "/dataset", f"{ref} has one class, {version.classes[0]}; a network needs something to tell apart."
        )
    elif not any(version.statistics.get("pixels", {}).get(name, 1) for name in version.classes[1:]):
        complaints.add(
            "/dataset",
            f"{ref} has no pixel of any foreground class: its masks are empty. Check the masks and the label map.",
        )
    trainable = _pairs(session, version, DatasetItem.split.is_distinct_from("test"))
    needed = max(2, spec.folds or 0)
    if trainable < needed:
        complaints.add(
            "/folds" if spec.folds else "/dataset",
            f"{ref} has {trainable} pairs to train and validate on; {needed} are needed.",
        )
    _classes_exist(spec, ref, version, complaints)


def _patch_fits(session: Session, spec: TrainSpec, ref: str, version: DatasetVersion, complaints: Complaints) -> None:
    """Images smaller than the patch are filled up, but not all of them: that would be work for nothing."""
    shown = select(Image.shape).join(DatasetItem, Image.id == DatasetItem.image_id)
    shapes = session.scalars(shown.where(DatasetItem.version_id == version.id))
    largest = [max(sides) for sides in zip(*shapes, strict=True)]
    fits = [-(-side // spec.multiple) * spec.multiple for side in largest]
    if any(patch > side for patch, side in zip(spec.patch, fits, strict=False)):
        complaints.add(
            "/patch",
            f"patch is {by(spec.patch)} and the images of {ref} have up to {by(largest)}. At most {by(fits)} has a use;"
            " images smaller than the patch are filled up.",
        )


def _named_classes_exist(
    pointer: str,
    what: Literal["prior", "rule"],
    listed: Sequence[Prior | Pair],
    ref: str,
    version: DatasetVersion,
    complaints: Complaints,
) -> None:
    """What priors and rules name are classes of the dataset."""
    first = 1 if what == "prior" else 0
    known = version.classes[first:]
    for each in listed:
        numbers = [named if isinstance(named, int) else _index(known, named, first) for named in each.named]
        for named, number in zip(each.named, numbers, strict=True):
            if number is None or number >= len(version.classes):
                complaints.add(
                    pointer,
                    f"A {what} names the class {named}; {ref} has {first} to {len(version.classes) - 1}:"
                    f" {', '.join(known)}.",
                )
        if isinstance(each, Pair) and numbers[0] is not None and numbers[0] in numbers[1:]:
            complaints.add(
                pointer, f"The class {each.subject} is among its own others, by number or name. Leave it out of them."
            )


def _index(classes: Sequence[str], name: str, first: int) -> int | None:
    return first + classes.index(name) if name in classes else None


def _classes_exist(spec: TrainSpec, ref: str, version: DatasetVersion, complaints: Complaints) -> None:
    """What priors and rules name are classes of the dataset, and rules have two foreground classes or more to name."""
    losses = [("/loss", spec.loss)] + [
        (f"/stages/{number}/loss", stage.loss) for number, stage in enumerate(spec.stages or []) if stage.loss
    ]
    parts = [
        (f"{pointer}/terms/{position}", term) for pointer, loss in losses for position, term in enumerate(loss.terms)
    ]
    for pointer, part in [*parts, ("/network", spec.network)]:
        priors, pairs = getattr(part, "priors", None) or (), getattr(part, "pairs", ())
        _named_classes_exist(f"{pointer}/priors", "prior", priors, ref, version, complaints)
        _named_classes_exist(f"{pointer}/pairs", "rule", pairs, ref, version, complaints)
        if isinstance(part, RuleTerm) and len(version.classes) < 3:
            complaints.add(
                pointer,
                f"{part.name} is a rule between foreground classes, and {ref} has"
                f" {', '.join(version.classes[1:])} only. Leave the term out.",
            )


def _free_groups(session: Session, version: DatasetVersion) -> int:
    """Groups of pairs (an item without a group is one) that no split decides, so that folds can be cut of them."""
    group = func.coalesce(DatasetItem.group, DatasetItem.name)
    labelled = (DatasetItem.version_id == version.id, DatasetItem.mask_sha256.is_not(None), DatasetItem.split.is_(None))
    return session.scalar(select(func.count(func.distinct(group))).where(*labelled)) or 0


def _pairs(session: Session, version: DatasetVersion, condition: Any) -> int:
    return (
        session.scalar(
            select(func.count()).select_from(DatasetItem).where(DatasetItem.version_id == version.id, condition)
        )
        or 0
    )


def _same_network(
    spec: TrainSpec, ref: str, parent: ModelVersion, version: DatasetVersion, complaints: Complaints
) -> None:
    """Weights can be carried over: one architecture, one number of inputs and outputs."""
    theirs, ours = parent.spec.get("network"), spec.network.model_dump(mode="json")
    if theirs is None or ours != {**_usual(spec.network), **theirs}:  # an older version names fewer options
        complaints.add(
            "/start_from", f"{ref} is the network {theirs} and this job asks for {ours}. Use the same network."
        )
    _same_meaning(ref, parent, spec.dataset, version, complaints, classes=True, pointer="/start_from")


def _usual(network: Schema) -> dict[str, Any]:
    """The options of this network that have a default."""
    fields = type(network).model_fields
    return {name: field.get_default() for name, field in fields.items() if not field.is_required()}


def _same_meaning(
    model_ref: str,
    model: ModelVersion,
    data_ref: str,
    version: DatasetVersion,
    complaints: Complaints,
    *,
    classes: bool,
    pointer: str = "/dataset",
) -> None:
    """The model can read these images and, with `classes`, names their labels alike."""
    manifest = model.manifest
    for what in ("dimensions", "channels"):
        theirs, ours = manifest.get(what), getattr(version, what)
        if theirs is not None and theirs != ours:
            complaints.add(pointer, f"{model_ref} reads images with {theirs} {what} and {data_ref} has {ours}.")
    known = manifest.get("classes")
    if classes and known is not None and list(known) != list(version.classes):
        complaints.add(
            pointer,
            f"{model_ref} tells {', '.join(known)} apart and {data_ref} labels {', '.join(version.classes)}. The"
            " classes must be the same, in the same order.",
        )


def _images(
    session: Session, project_id: UUID, ids: Sequence[UUID], pointer: str, complaints: Complaints
) -> dict[UUID, list[int]]:
    """The shape of every image; unknown ids are complained about."""
    shapes = {image_id: row.shape for image_id, row in images.by_id(session, project_id, ids).items()}
    unknown = [position for position, image_id in enumerate(ids) if image_id not in shapes]
    for position in unknown[:TOLD]:
        complaints.add(f"{pointer}/{position}", f"There is no image {ids[position]}. Upload it first: POST /v1/images.")
    return shapes
