"""What a child process gets and how it ends, for every kind of child that the product starts."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from rich.console import Console

from app import sandbox
from app.admission.networks import tried
from app.demo.story import service
from app.errors import ModelRejected
from app.imaging.decoders import Decoders
from app.serving.bounded import BoundedNetwork, Bounds
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Stop
from tests.records import add_dataset, job_now, submit, train_spec
from tests.services import ROOT, wait_for
from tests.serving import networks
from workers.registration import device
from workers.worker import Worker

SECRETS = (
    "TOPOSERVE_DATABASE_URL",
    "TOPOSERVE_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AZURE_STORAGE_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "PGPASSWORD",
    "REDIS_PASSWORD",
    "GITHUB_TOKEN",
    "SECRET_KEY",
    "HTTPS_PROXY",
    "PYTHONSTARTUP",
    "path",  # names are compared as they are written
)
"""Variables that a real host has."""
QUICK_MODELS = (sys.executable, str(ROOT / "tests" / "workers" / "quick_models.py"))


def add_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in the environment of this process, and one variable of the list, which every child shall get."""
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")


def environments_seen(action: Callable[[], Any]) -> dict[str, dict[str, str]]:
    """Command line to environment, of every process below this one while `action` runs and this one has secrets."""
    seen: dict[str, dict[str, str]] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        add_secrets(monkeypatch)
        thread = threading.Thread(target=action)
        thread.start()
        while thread.is_alive():
            for process in psutil.Process().children(recursive=True):
                try:
                    command = " ".join(process.cmdline())  # first: until it execs, it has the environment of this one
                    content = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
                except (psutil.Error, OSError):
                    continue  # it has ended
                if content:
                    seen[command] = dict(variable.split("=", 1) for variable in content.split("\0") if variable)
            thread.join(0.002)
    return seen


def assert_only_allowed(seen: dict[str, dict[str, str]], *words: str) -> None:
    """For each word a process was seen whose command has it, and none of these has a variable outside the list."""
    for word in words:
        children = [environment for command, environment in seen.items() if word in command]
        assert children, f"no {word} among {list(seen)}"
        for each in children:
            assert each.keys() <= sandbox.ALLOWED, f"{sorted(each.keys() - sandbox.ALLOWED)} reached {word}"
            assert each["LC_CTYPE"] == "C.UTF-8" and "a secret" not in each.values()


def test_no_variable_outside_the_list_reaches_a_decoder(make_settings: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((4, 4), np.uint8))
    decoders = Decoders(make_settings())
    seen = environments_seen(lambda: decoders.decode(tmp_path / "image.tif"))
    decoders.close()
    assert_only_allowed(seen, "app.imaging.decoder_process")


def test_no_variable_outside_the_list_reaches_the_trial_of_a_network(make_settings: Any) -> None:
    settings = make_settings()
    settings.scratch.mkdir(parents=True)

    def refuse() -> None:
        with tempfile.TemporaryFile() as file, pytest.raises(ModelRejected, match="cannot be parsed"):
            file.write(b"no network")
            file.flush()
            tried(file, {}, "manifest.json", settings)

    assert_only_allowed(environments_seen(refuse), "app.serving.trial")


def test_no_variable_outside_the_list_reaches_an_imported_network() -> None:
    content = networks.blur()
    manifest = Manifest.model_validate(networks.manifest(content))
    image = np.zeros((1, 1, 8, 8), np.float32)

    def answer() -> None:
        BoundedNetwork(content, manifest, Load(), Bounds(2**30, 60), threads=1)(image, Stop())

    assert_only_allowed(environments_seen(answer), "app.serving.network_process")


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_no_variable_outside_the_list_reaches_a_training_or_an_export(
    settings: Any, database: Any, blobs: Any, project_id: uuid.UUID
) -> None:
    worker = Worker(settings.model_copy(update={"stop_grace_s": 0.5}), models=QUICK_MODELS)
    visible = {"end": "slow, output open"}  # long enough to be seen
    spec = train_spec(add_dataset(database, blobs, project_id), behaviour=visible | {"export": visible})
    job = submit(database, project_id, spec)
    seen = environments_seen(lambda: worker.drain("train"))
    worker.installation.database.dispose()
    assert job_now(database, job).state == "succeeded"
    assert_only_allowed(seen, "quick_models.py train", "quick_models.py export")


def test_no_variable_outside_the_list_reaches_the_service_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text("{}")

    def serve() -> None:
        with service(tmp_path, Console(quiet=True), keep=False):
            pass

    assert_only_allowed(environments_seen(serve), "app.cli up")


def test_no_variable_outside_the_list_reaches_the_program_that_names_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n/usr/bin/env > {tmp_path}/seen\necho "A GPU"\n')
    program.chmod(0o755)
    add_secrets(monkeypatch)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert device.__wrapped__() == "A GPU"
    variables = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    of_the_shell = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert_only_allowed({"nvidia-smi": {k: v for k, v in variables.items() if k not in of_the_shell}}, "nvidia-smi")


STARTS_A_PROCESS = {
    "subprocess.Popen",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_output",
    "subprocess.check_call",
    "os.system",
    "os.popen",
    "os.fork",
    "os.posix_spawn",
    "multiprocessing.get_context",
    "multiprocessing.Process",
    "ProcessPoolExecutor",
}
MAY_START_ONE = {
    "app/sandbox/__init__.py",
    "app/supervisor.py",  # the service itself: it needs its settings
    "workers/registration.py",  # asks nvidia-smi, in the environment of the sandbox
}


def test_only_the_sandbox_and_the_supervisor_start_processes() -> None:
    found = set()
    for package in ("app", "workers", "models", "topology"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                inherited = (
                    [ast.unparse(base).partition("[")[0] for base in node.bases]
                    if isinstance(node, ast.ClassDef)
                    else []
                )
                if STARTS_A_PROCESS & {called, *inherited}:
                    found.add(str(path.relative_to(ROOT)))
    assert found == MAY_START_ONE


# How a process in the sandbox lives and ends --------------------------------------------------------------------------

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_limits_are_set_before_the_program_begins() -> None:
    program = "import resource as r; print(r.getrlimit(r.RLIMIT_AS), r.getrlimit(r.RLIMIT_CORE))"
    with sandbox.start([sys.executable, "-c", program], memory_bytes=2**30, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=60)[0].decode().strip() == f"({2**30}, {2**30}) (0, 0)"
    assert process.returncode == 0


def test_threads_and_gpus_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    as_here, one = sandbox.environment(), sandbox.environment(threads=1, gpu=False)
    assert (as_here["OMP_NUM_THREADS"], as_here["CUDA_VISIBLE_DEVICES"]) == ("7", "3")
    assert {one[name] for name in sandbox.THREAD_VARIABLES} == {"1"} and one["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_process_ends_with_a_parent_that_was_killed(number: signal.Signals) -> None:
    code = (
        "import signal, sys, time; from app import sandbox\n"
        f"process = sandbox.start({SLEEP!r}, when_parent_ends=signal.{number.name})\n"
        "print(process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not has_ended(child)
        parent.kill()
    wait_for(lambda: has_ended(child), what="the end of the child")


def test_process_outlives_the_thread_that_asked_for_it() -> None:
    """To Linux the parent of a process is a thread, and those of a server come and go."""
    started: list[sandbox.Process] = []
    thread = threading.Thread(target=lambda: started.append(sandbox.start(SLEEP, stdout=subprocess.PIPE)))
    thread.start()
    thread.join()
    (process,) = started
    with process:
        assert process.stdout.readline() == b"up\n" and process.poll() is None
    assert process.returncode == -signal.SIGKILL


def test_process_that_shall_live_on_outlives_its_parent() -> None:
    code = (
        "from app import sandbox\n"
        f"print(sandbox.start({SLEEP!r}, when_parent_ends=None).pid, flush=True); import os; os._exit(0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    child = int(ended.stdout)
    try:
        with pytest.raises(AssertionError, match="waited"):
            wait_for(lambda: has_ended(child), seconds=0.5, what="what shall not happen")
    finally:
        os.kill(child, signal.SIGKILL)


def test_leaving_the_block_ends_everything_that_was_started() -> None:
    code = f"import subprocess; p = subprocess.Popen({SLEEP!r}); print(p.pid, flush=True); p.wait()"
    with sandbox.start([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        grandchild = int(process.stdout.readline())
        assert not has_ended(grandchild)
    wait_for(lambda: has_ended(grandchild), what="the end of the grandchild")


def test_process_that_does_not_end_in_time_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with sandbox.start([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait_or_kill(0.1) == -signal.SIGKILL
    with sandbox.start([sys.executable, "-c", "raise SystemExit(5)"]) as process:
        assert process.wait_or_kill(60) == 5


def test_processor_time_is_limited() -> None:
    loop = "from app.sandbox import limit_processor_time\nlimit_processor_time(0)\nwhile True: pass"
    ended = subprocess.run([sys.executable, "-c", loop], cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == -signal.SIGXCPU


def test_fork_of_a_process_that_used_the_sandbox_uses_it_too() -> None:
    code = (
        "import os, sys; from app import sandbox; quick = [sys.executable, '-c', 'pass']\n"
        "assert sandbox.start(quick).wait() == 0\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(sandbox.start(quick).wait())\n"
        "sys.exit(os.waitpid(child, 0)[1])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, timeout=60, check=True)
