"""The probe job: how hard each term of a loss pulls on the data."""

from __future__ import annotations

import json

from workers.supervise import Event, require_success, supervise
from workers.train import OURS, start_of, write_data
from workers.work import Work


def probe(work: Work) -> None:
    """Measure gradients in a child process; the result is what it answers."""
    data = work.folder / "data"
    work.heartbeat.progress(phase="prepare", fraction=0.0)
    write_data(work, data)
    batches = work.claim.spec["batches"]
    spec = {name: value for name, value in work.claim.spec.items() if name not in OURS | {"batches"}}
    (work.folder / "spec.json").write_text(json.dumps(spec | {"threads": work.settings.train_threads}))
    command = [*work.installation.models, "probe", "--spec", str(work.folder / "spec.json"), "--data", str(data)]
    command += ["--batches", str(batches)]
    if (start := start_of(work)) is not None:
        command += ["--start-from", str(start)]
    work.heartbeat.progress(phase="measure", step=0, steps=batches)
    seen = 0

    def told(event: Event) -> None:
        nonlocal seen
        if event["event"] == "log":
            seen += event["message"].startswith("Batch ")
            work.heartbeat.record("log", level=event["level"], message=event["message"])
            work.heartbeat.progress(step=seen, fraction=seen / batches)

    done = require_success(supervise(command, work, told), "The probe")
    work.finish(lambda session: {name: done[name] for name in ("batches", "pixel_norm", "terms")})
