"""Set before jax is imported: it reads them once. There is no chip, and nothing looks for one."""

import os

for variable, value in {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask for the machine's chips
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # tests may run side by side
}.items():
    os.environ.setdefault(variable, value)
