"""Health, readiness and metrics of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from anyio import move_on_after
from anyio.to_thread import run_sync
from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import distinct, func, select
from sqlalchemy.orm import Session

from app.http.callers import Caller, require
from app.http.endpoints import noun_router
from app.http.resources import Read, ServicesDep
from app.roles import Principal
from app.schemas.service import Alive, Check, Ready
from app.services import Services
from app.serving.statistics import RECENT
from app.store.session import clock
from app.store.tables import FINISHED, Job, Model, ModelVersion, Project, Worker

router = noun_router("service", prefix="")

PATIENCE_S = 2
"""Time a check may take; a database that hangs must not make the probe hang."""
MOST_VERSIONS = 100
"""Versions that have figures here: those that were asked last, so that labels stay few."""
JOBS = Gauge("toposerve_jobs", "Jobs that are not finished.", ["kind", "state"])


@router.get("/livez")
async def live() -> Alive:
    """The process answers. Restart it when it does not."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Ready, "description": "Send requests elsewhere for now."}})
async def ready(services: ServicesDep, response: Response) -> Ready:
    """Whether requests should be sent here, part by part. Jobs are accepted without a broker or a worker: they wait."""
    checks = {
        "database": await _checked(_database, services),
        "broker": await _checked(_broker, services),
        "workers": await _checked(_workers, services),
    }
    status = _worst(services, checks)
    response.status_code = 503 if status in ("failed", "draining") else 200
    return Ready(status=status, checks=checks)


@router.get(
    "/metrics",
    dependencies=[require("metrics:read")],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": 'toposerve_jobs{kind="train",state="queued"} 2.0\n'}}}},
)
def metrics(caller: Caller, session: Read, services: ServicesDep) -> Response:
    """Figures of this process and of the queue, for Prometheus; of models those of the caller's project, for an
    operator those of all.
    """
    JOBS.clear()
    waiting = select(Job.kind, Job.state, func.count()).where(Job.state.not_in(FINISHED)).group_by(Job.kind, Job.state)
    for kind, state, count in session.execute(waiting):
        JOBS.labels(kind, state).set(count)
    models = CollectorRegistry()
    models.register(_Models(list(_families(caller, session, services))))
    return Response(generate_latest() + generate_latest(models), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Models(Collector):
    """Figures that are made when they are asked for, so that no name stays a label for ever."""

    def __init__(self, families: Iterable[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(caller: Principal, session: Session, services: Services) -> Iterable[Metric]:
    """Latency, failures and phases of the versions that were asked last in this process."""
    labels = ["project", "model", "version"]
    latency = GaugeMetricFamily(
        "toposerve_model_latency_seconds",
        f"Quantiles of the newest {RECENT} predictions, from arrival to answer.",
        labels=[*labels, "quantile"],
    )
    answered = CounterMetricFamily(
        "toposerve_model_requests", "Predictions, by whether they were answered.", labels=[*labels, "outcome"]
    )
    phases = SummaryMetricFamily(
        "toposerve_model_phase_seconds", "Where the time of predictions went.", labels=[*labels, "phase"]
    )
    query = (
        select(Project.name, Model.name, ModelVersion)
        .join(Model, Model.project_id == Project.id)
        .join(ModelVersion, ModelVersion.model_id == Model.id)
    )
    query = query.where(ModelVersion.id.in_(services.registry.statistics.used(MOST_VERSIONS)))
    for project, model, version in session.execute(
        query if caller.role == "operator" else query.where(Project.id == caller.project_id)
    ):
        live, counted = services.registry.statistics.live(version.id), services.registry.statistics.of(version.id)
        names = [project, model, str(version.number)]
        for quantile, ms in live.quantiles_ms.items():
            latency.add_metric([*names, f"{quantile:g}"], ms / 1000)
        answered.add_metric([*names, "success"], live.requests - live.failures)
        answered.add_metric([*names, "failure"], live.failures)
        for phase, each in counted.phases.items():
            if phase not in ("success", "fail"):
                phases.add_metric([*names, phase], each.count, each.ns / 1e9)
    return (latency, answered, phases)


def _worst(services: Services, checks: dict[str, Check]) -> str:
    if services.draining.is_set():
        return "draining"
    if checks["database"].status == "failed":
        return "failed"
    return "ok" if all(check.status == "ok" for check in checks.values()) else "degraded"


async def _checked(check: Callable[[Services], Check], services: Services) -> Check:
    with move_on_after(PATIENCE_S):
        # The thread of a check that hangs is left to itself; the probe is answered.
        return await run_sync(_guarded, check, services, abandon_on_cancel=True)
    return Check(status="failed", detail=f"no answer within {PATIENCE_S} s")


def _guarded(check: Callable[[Services], Check], services: Services) -> Check:
    try:
        return check(services)
    except Exception as error:  # whatever a driver raises: the probe says so, the log has it
        return Check(status="failed", detail=f"does not answer ({type(error).__name__})")


def _database(services: Services) -> Check:
    with services.database.read() as session:
        session.execute(select(1))
    return Check(status="ok", detail=f"{services.database.engine.dialect.name} answers")


def _broker(services: Services) -> Check:
    if services.settings.redis_url is None:
        return Check(status="ok", detail="none: workers look at the rows themselves")
    import redis  # not at the top: an embedded gateway never pays for it

    with redis.Redis.from_url(services.settings.redis_url, socket_timeout=1, socket_connect_timeout=1) as client:
        client.ping()
    return Check(status="ok", detail="redis answers")


def _workers(services: Services) -> Check:
    with services.database.read() as session:
        seen = (
            session.scalar(
                select(func.count(distinct(Worker.id))).where(Worker.seen_at > clock() - services.settings.lease_s)
            )
            or 0
        )
    return Check(
        status="ok" if seen else "degraded",
        detail=f"{seen} seen" if seen else "none seen; jobs wait. Start one with `toposerve worker`.",
    )
