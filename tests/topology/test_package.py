"""The topology package: compiled at install, documented examples run, few imports."""

import re
import subprocess
import sys

import numpy as np
import pytest

from tests.topology.masks import ROOT

PAGE = ROOT / "docs" / "topology.md"

SECOND_CALL = """
import numpy as np
from numba.core.dispatcher import Dispatcher
compiled = []
load = Dispatcher._compile_for_args
Dispatcher.compile_was = Dispatcher.compile
def compile(self, signature):
    answer = self.compile_was(signature)
    if sum(self.stats.cache_misses.values()):
        compiled.append(f"{self.py_func.__module__}.{self.py_func.__name__}")
    return answer
Dispatcher.compile = compile
from topology.matching import match
from topology.metrics import locate_errors, measure, report
from topology.margins import margins
from topology.persistence import persistence
from topology.simple import point_kinds
from topology.edits import connect, cut, fill, remove
from topology.simplify import simplify_firm, simplify_to
from topology.soft_thinning import Thinning
for shape in ((20, 24), (9, 10, 11)):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    report(values)
    measure(values, values[::-1] > 0.4, ignore=values > 0.9)
    locate_errors(values, values[::-1] > 0.4)
    margins(values, 0.5), point_kinds(values > 0.5), simplify_firm(values, 0.1)
    simplify_to(values, (2,) + (0,) * (values.ndim - 1), partial=True, connectivity="open")
    tube = np.zeros((9,) * (values.ndim - 1) + (40,), np.float32)
    tube[(slice(2, 7),) * (values.ndim - 1)] = 0.8
    there, on = [(4,) * (values.ndim - 1) + (x,) for x in (10, 30)], tube > 0.5
    for edit in (cut(tube, on, there[0]), cut(tube, on, *there)):
        for at in (edit.pixels[0], edit.pixels[-1]):
            connect(tube, edit.made(on), at)
        connect(tube, edit.made(on), *there), remove(tube, edit.made(on), there[1])
    on[(4,) * (values.ndim - 1) + (20,)] = False
    fill(tube, on, (4,) * (values.ndim - 1) + (20,))
    persistence(values), persistence(values.astype(float)), match(values, values[::-1])
    Thinning(values, iterations=2).back(values)
print(sorted(set(compiled)))
"""


def test_kernels_are_compiled_at_install_time():
    subprocess.run([sys.executable, "-m", "topology"], check=True, cwd=ROOT, capture_output=True)
    answer = subprocess.run([sys.executable, "-c", SECOND_CALL], check=True, cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_documented_examples_run(example):
    exec(compile(example, str(PAGE), "exec"), {})


def test_every_documented_function_exists():
    import importlib

    named = re.findall(r"`(\w+)\.(\w+)\(", PAGE.read_text())
    assert len(named) > 12
    for module, function in named:
        assert callable(getattr(importlib.import_module(f"topology.{module}"), function))


def test_every_documented_picture_exists():
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", PAGE.read_text()):
        assert (PAGE.parent / picture).stat().st_size > 0


def test_topology_needs_neither_torch_nor_the_service():
    code = (
        "import sys, topology.metrics, topology.simplify, topology.morse;"
        " import topology.soft_thinning; print([m for m in ('torch',"
        " 'app', 'models') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"


def test_kernels_accept_read_only_input():
    from topology.matching import match
    from topology.morse import ridges
    from topology.simplify import simplify_below

    values = np.random.default_rng(0).random((12, 12)).astype(np.float32)
    values.flags.writeable = False
    before = values.copy()
    match(values, values), ridges(values), simplify_below(values, 0.2)
    assert np.array_equal(values, before)
