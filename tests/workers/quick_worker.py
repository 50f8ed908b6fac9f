"""The real worker with the stand-in trainer, as module or Celery app."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app import logs
from app.settings import get_settings
from workers.__main__ import lanes_of, serve

QUICK_MODELS = (sys.executable, str(Path(__file__).with_name("quick_models.py")))

if get_settings().redis_url is not None:
    from workers.broker import make

    app = make(get_settings(), models=QUICK_MODELS)
elif __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--lanes", type=lanes_of)
    logs.set_up(get_settings())
    serve(get_settings(), parser.parse_args().lanes, models=QUICK_MODELS)
