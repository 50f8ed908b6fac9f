"""`python -m topology` compiles every kernel and keeps the machine code."""

import time

from topology.warm import warm

if __name__ == "__main__":
    start = time.perf_counter()
    warm()
    print(f"topology kernels are ready ({time.perf_counter() - start:.1f} s)")
