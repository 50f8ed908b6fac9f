"""Runs a training in this process and returns its events."""

import io
import json

from models.events import Events
from models.train import train


def run(spec, data, out, **options):
    """The events of a run; `run.events` has them also when it was stopped or failed."""
    stream = io.StringIO()
    try:
        train(spec, data, out, events=Events(stream, clock=iter(range(10**6)).__next__), **options)
    finally:
        run.events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return run.events
