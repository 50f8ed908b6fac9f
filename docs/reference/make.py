"""Write the reference pages from the code they describe: `make docs`.

A test compares them with what this would write, so a setting, an error, a route or a kind of job without its line here
fails the build.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from app.errors import every_problem
from app.imaging import FORMATS
from app.job_kinds import KINDS
from app.main import build
from app.metric_table import METRICS
from app.settings import Settings

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/reference/make.py; change the code and run `make docs`. -->\n"


def table_page(title: str, introduction: str, head: str, rows: Iterable[Iterable[str]], after: str = "") -> str:
    """A page with one table, whose columns the head names."""
    ruler = "|".join("---" for _ in head.split("|"))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([NOTE, f"# {title}\n", f"{introduction}\n", f"| {head} |", f"|{ruler}|", *lines]) + "\n" + after


def settings_page() -> str:
    """Every setting with its default and what it is for."""
    introduction = "Environment variables, or lines of a `.env` file in the folder the service starts in."
    fields = Settings.model_fields.items()
    rows = (
        (f"`TOPOSERVE_{name.upper()}`", f"`{field.get_default(call_default_factory=True)}`", str(field.description))
        for name, field in fields
    )
    return table_page("Settings", introduction, "name | default | what it is for", rows)


def errors_page() -> str:
    """Every problem a caller may be told."""
    introduction = "Every error is `application/problem+json` (RFC 9457); `code` is stable and meant for programs."
    problems = sorted(every_problem(), key=lambda kind: (kind.status, kind.code))
    rows = ((str(each.status), f"`{each.code}`", each.title, each().detail) for each in problems)
    return table_page("Errors", introduction, "status | code | title | what it means", rows)


def routes_page() -> str:
    """Every operation of the OpenAPI document."""
    introduction = "The running service shows the same with schemas and examples at `/docs`."
    with tempfile.TemporaryDirectory() as folder:
        document = build(Settings(data_dir=Path(folder), open=True)).openapi()
    rows = (
        (f"`{method.upper()} {path}`", " ".join(_first_paragraph(operation).split()))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return table_page("Routes", introduction, "call | what it does", rows)


def _first_paragraph(operation: dict[str, str]) -> str:
    return operation.get("description", operation["summary"]).split("\n\n")[0]


def jobs_page() -> str:
    """Every kind of job."""
    introduction = (
        '`POST /v1/jobs` takes `{"kind": ...}` with the fields of the kind, which `/docs` shows with their limits and'
        " defaults. Any job that has not finished can be cancelled; one that was cancelled, interrupted or failed can"
        " be resumed."
    )
    head = "kind | lane | what it does | `result` | when cancelled | resumes from"
    rows, fields = [], "\n## Fields\n\n"
    for kind in KINDS.values():
        does = " ".join((kind.spec.__doc__ or "").split())
        rows.append((f"`{kind.name}`", kind.lane, does, kind.result, kind.cancelled, kind.resumes_from))
        names = (f"**{name}**" if each.is_required() else name for name, each in kind.spec.model_fields.items())
        fields += f"`{kind.name}`: {', '.join(names)}.\n\n"
    return table_page("Kinds of job", introduction, head, rows, fields + "Fields in bold are required.\n")


def formats_page() -> str:
    """Every image format."""
    introduction = (
        "The bytes decide what a file is, not its name or Content-Type. Pixels come as uint8, uint16, int16 or float32:"
        " another type becomes the first of these that holds all its values."
    )
    head = "`format` | what | ends | Content-Type | holds | channels | types | as a mask | answers"
    rows = []
    for each in FORMATS.values():
        suffixes = ", ".join(f"`{suffix}`" for suffix in each.suffixes)
        holds = " and ".join({2: "images", 3: "volumes"}[dimensions] for dimensions in each.dimensions)
        kept = (holds, each.channels, ", ".join(each.depths), each.masks, "yes" if each.writer else "no")
        rows.append((f"`{each.name}`", each.title, suffixes, f"`{each.media_type}`", *kept))
    return table_page("Image formats", introduction, head, rows)


def metrics_page() -> str:
    """Every metric."""
    introduction = (
        "Figures for one class of one image against its reference; means are over images and classes. A gate of an"
        " alias bounds any of them; a training may be judged by those that images and volumes both have."
    )
    head = "metric | label | unit | better | images | bound of a gate | meaning | computed by"
    rows = []
    for metric in METRICS.values():
        images = " and ".join(f"{dimensions}D" for dimensions in metric.dimensions)
        facts = (metric.label, metric.unit, metric.better, images)
        rows.append((f"`{metric.name}`", *facts, f"`{metric.bound}`", metric.meaning, f"`{metric.function}`"))
    return table_page("Metrics", introduction, head, rows)


PAGES = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "routes.md": routes_page,
    "jobs.md": jobs_page,
    "formats.md": formats_page,
    "metrics.md": metrics_page,
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
        print(f"docs/reference/{name}")
