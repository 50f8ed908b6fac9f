"""The version of this installation, as pyproject.toml states it."""

from importlib.metadata import version

VERSION = version("toposerve")
