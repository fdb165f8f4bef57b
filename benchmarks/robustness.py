"""Robustness: attacks on the readers and the scripts, repeatability, and load, one after the other."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.attacks_files import attack_readers, attack_with_bombs, attack_with_names
from benchmarks.attacks_prediction import attack_prediction
from benchmarks.attacks_training import attack_training
from benchmarks.checks import Checks
from benchmarks.load import put_under_load
from benchmarks.repeatability import check_determinism, check_equivariance
from config import AttackKind, RobustnessSettings

ATTACKS: dict[AttackKind, Callable[[RobustnessSettings, Path, Checks], None]] = {
    "files": attack_readers,
    "bombs": attack_with_bombs,
    "names": attack_with_names,
    "training": attack_training,
    "prediction": attack_prediction,
    "determinism": check_determinism,
    "equivariance": check_equivariance,
    "load": put_under_load,
}


def attack(settings: RobustnessSettings) -> int:
    """Try everything that is asked for, each kind in a folder of its own; 1 where any check failed, else 0."""
    checks = Checks()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if settings.out is None else settings.out
        for kind in settings.kinds:
            begun = time.monotonic()
            print(f"-- {kind}", flush=True)
            (out / kind).mkdir(parents=True, exist_ok=True)
            ATTACKS[kind](settings, out / kind, checks)
            print(f"-- {kind}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{checks.failed} checks failed")
    return 1 if checks.failed else 0
