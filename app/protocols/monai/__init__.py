"""MONAI Label's wire under `/monai`, for its client, 3D Slicer and OHIF.

Every success is 200 and every error `{"detail": ...}`, because its client reads nothing else. A model is `name` or
`name@alias`; the image of a call is a file that comes along, a session, or the id or the name of a stored image.
Labels are numbers from 1 in the order of `labels`. Not offered: whole slides, scoring, and models that take clicks
(`/nninteractive` does).
"""

from app.protocols.monai import datastore, infer, next_sample, service, sessions, training

ROUTERS = tuple(part.router for part in (service, infer, datastore, sessions, next_sample, training))
