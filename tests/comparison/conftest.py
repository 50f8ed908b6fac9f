"""A worker in the test process that runs the stand-in trainer, and comparisons for it."""

from tests.workers.conftest import in_background, rings, worker

__all__ = ["in_background", "rings", "worker"]
