"""Running the project's scripts in processes of their own, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def launch(*command, env=None, **options):
    """Run Python with these arguments in the project's folder, on one core and without a GPU, and wait for its end.

    `env`: further environment variables.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | (env or {})
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


def launch_ranks(*command, count=2):
    """Run a script with its arguments under torchrun."""
    return launch("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *command)
