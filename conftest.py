"""Tests compute little at a time: threads would only wait for one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, here or in a subprocess
