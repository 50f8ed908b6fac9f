"""Discrete mathematics of masks and maps: counted, located, changed. Pure functions on arrays.

Start at `topology.grids`, which states the conventions once; every other file is one notion.
"""

from topology import compiled_code

compiled_code.register()  # before the first kernel is defined
