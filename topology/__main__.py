"""`python -m topology`: compile every kernel and keep the machine code, so that no request pays for the compiler."""

import time

from topology.warm import warm

if __name__ == "__main__":
    start = time.perf_counter()
    warm()
    print(f"topology kernels are ready ({time.perf_counter() - start:.1f} s)")
