"""Tests compute little at a time: threads would only wait for one another.

Kernels run in Triton's interpreter, on tensors of the host. It is switched on before anything can
have imported triton, which decides it once; tests that compile kernels do so in a process of their
own.
"""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, here or in a subprocess
os.environ.setdefault("TRITON_INTERPRET", "1")

# pytest listens to loggers that do not propagate; where somebody listens to this one, torch writes
# down whatever Dynamo does.
logging.getLogger("torch.__trace").propagate = True
