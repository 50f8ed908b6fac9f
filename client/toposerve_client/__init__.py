"""Client of toposerve: images in, masks and their topology out; datasets, jobs and models beside."""

from toposerve_client.client import AsyncClient, Client
from toposerve_client.errors import (
    Forbidden,
    JobEnded,
    NotFound,
    Refused,
    TimedOut,
    ToposerveError,
    Unreachable,
)
from toposerve_client.jobs import Event
from toposerve_client.predictions import Prediction
from toposerve_client.tables import Table

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Forbidden",
    "JobEnded",
    "NotFound",
    "Prediction",
    "Refused",
    "Table",
    "TimedOut",
    "ToposerveError",
    "Unreachable",
]
