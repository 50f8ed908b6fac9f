"""`python -m app.cli` is `toposerve`."""

from app.cli import main

main()
