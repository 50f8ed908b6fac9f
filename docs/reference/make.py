"""Write the reference pages from the code they describe: `make docs`.

A test compares them with what this would write, so a setting, an error, a route or a kind of job without its line here
fails the build.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.errors import every_problem
from app.imaging import FORMATS
from app.job_kinds import KINDS
from app.main import build
from app.metric_table import METRICS
from app.settings import Settings

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/reference/make.py; change the code and run `make docs`. -->\n"


def settings_page() -> str:
    """Every setting with its default and what it is for."""
    lines = [
        NOTE,
        "# Settings\n",
        "Environment variables, or lines of a `.env` file in the folder the service starts in.\n",
        "| name | default | what it is for |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        lines.append(f"| `TOPOSERVE_{name.upper()}` | `{default}` | {field.description} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every problem a caller may be told."""
    lines = [
        NOTE,
        "# Errors\n",
        "Every error is `application/problem+json` (RFC 9457); `code` is stable and meant for programs.\n",
        "| status | code | title | what it means |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {problem.status} | `{problem.code}` | {problem.title} | {problem().detail} |"
        for problem in sorted(every_problem(), key=lambda kind: (kind.status, kind.code))
    ]
    return "\n".join(lines) + "\n"


def routes_page() -> str:
    """Every operation of the OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        document = build(Settings(data_dir=Path(folder), open=True)).openapi()
    lines = [
        NOTE,
        "# Routes\n",
        "The running service shows the same with schemas and examples at `/docs`.\n",
        "| call | what it does |",
        "|---|---|",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            said = operation.get("description", operation["summary"]).split("\n\n")[0]
            lines.append(f"| `{method.upper()} {path}` | {' '.join(said.split())} |")
    return "\n".join(lines) + "\n"


def jobs_page() -> str:
    """Every kind of job."""
    lines = [
        NOTE,
        "# Kinds of job\n",
        (
            '`POST /v1/jobs` takes `{"kind": ...}` with the fields of the kind, which `/docs` shows with their limits'
            " and defaults. Any job that has not finished can be cancelled; one that was cancelled, interrupted or"
            " failed can be resumed.\n"
        ),
        "| kind | lane | what it does | `result` | when cancelled | resumes from |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS.values():
        does = " ".join((kind.spec.__doc__ or "").split())
        facts = (f"`{kind.name}`", kind.lane, does, kind.result, kind.cancelled, kind.resumes_from)
        lines.append(f"| {' | '.join(facts)} |")
    lines.append("\n## Fields\n")
    for kind in KINDS.values():
        fields = ", ".join(
            f"**{name}**" if field.is_required() else name for name, field in kind.spec.model_fields.items()
        )
        lines.append(f"`{kind.name}`: {fields}.\n")
    lines.append("Fields in bold are required.")
    return "\n".join(lines) + "\n"


def formats_page() -> str:
    """Every image format."""
    lines = [
        NOTE,
        "# Image formats\n",
        (
            "The bytes decide what a file is, not its name or Content-Type. Pixels come as uint8, uint16, int16 or"
            " float32: another type becomes the first of these that holds all its values.\n"
        ),
        "| `format` | what | ends | Content-Type | holds | channels | types | as a mask | answers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in FORMATS.values():
        holds = " and ".join({2: "images", 3: "volumes"}[dimensions] for dimensions in each.dimensions)
        facts = (
            f"`{each.name}`",
            each.title,
            ", ".join(f"`{suffix}`" for suffix in each.suffixes),
            f"`{each.media_type}`",
            holds,
            each.channels,
            ", ".join(each.depths),
            each.masks,
            "yes" if each.writer else "no",
        )
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Every metric."""
    lines = [
        NOTE,
        "# Metrics\n",
        (
            "Figures for one class of one image against its reference; means are over images and classes. A gate of an"
            " alias bounds any of them; a training may be judged by those that images and volumes both have.\n"
        ),
        "| metric | label | unit | better | images | bound of a gate | meaning | computed by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for metric in METRICS.values():
        images = " and ".join(f"{dimensions}D" for dimensions in metric.dimensions)
        facts = (
            f"`{metric.name}`",
            metric.label,
            metric.unit,
            metric.better,
            images,
            f"`{metric.bound}`",
            metric.meaning,
            f"`{metric.function}`",
        )
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join(lines) + "\n"


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
