"""What a deletion takes along, and new names, as the API shows and takes them."""

from __future__ import annotations

from app.schemas.base import Name, Schema, example


class Deletion(Schema):
    """What would go if an object were deleted now."""

    object: str
    """The object in words."""
    own: dict[str, int]
    """Rows by table that are the object or a part of it."""
    derived: dict[str, int]
    """Rows by table that were made from it: they go when the request says `derived=true`."""
    blocked_by: list[str]
    """What must be ended, moved or deleted first; nothing can be deleted while this is not empty."""
    stays: list[str]
    """What was made from it and is kept."""
    found_in: list[str]
    """Dataset versions that would lose a pair."""

    model_config = {
        **Schema.model_config,
        **example(
            {
                "object": "image retina-0042.png",
                "own": {"images": 1},
                "derived": {"predictions": 2, "measurements": 2, "dataset_items": 1},
                "blocked_by": [],
                "stays": ["Model vessels:3 learnt from a dataset with it; delete that version too if it must not."],
                "found_in": ["vessels@1"],
            }
        ),
    }


class NewName(Schema):
    """Another name for a dataset or a model."""

    name: Name

    model_config = {**Schema.model_config, **example({"name": "retina"})}
