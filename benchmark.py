"""Tables of accuracy and speed that the README shows.

    python benchmark.py accuracy --data DIR [DIR ...] --jpeg 90        images in parallel over processes
    python benchmark.py matching-speed --image FILE
    python benchmark.py calibrate --data DIR --authentic DIR           writes weights/evidence.json
    python benchmark.py speed --data DIR                               cascade, losses, tuning, image cache
    python benchmark.py step-speed --backbone NAME --batch-sizes 8 32  training steps and embedding on this device
    python benchmark.py study --train DIR --dev DIR --out DIR          variants of the learned path, with seeds
    python benchmark.py faults --kinds files bombs training            hostile files, kills, load; about an hour for all

A folder of synthesis.py has a JSON beside each image: its forgeries are also shown by size of copy, kind of
region, rotation, scale, blending and JPEG quality.
"""

from config import BenchmarkCommand
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(BenchmarkCommand)  # above the heavy imports: `--help` and mistakes answer at once

from benchmarks.ablation import study
from benchmarks.accuracy import accuracy
from benchmarks.calibrate import calibrate
from benchmarks.robustness import faults
from benchmarks.timing import matching_speed, speed, step_speed
from config import (
    AccuracySettings,
    CalibrateSettings,
    FaultsSettings,
    MatchingSpeedSettings,
    StepSpeedSettings,
    StudySettings,
)


def main(settings: BenchmarkCommand) -> int | None:
    """Run the chosen table; the exit status where it is not 0."""
    if isinstance(settings, AccuracySettings):
        accuracy(settings)
    elif isinstance(settings, MatchingSpeedSettings):
        matching_speed(settings)
    elif isinstance(settings, CalibrateSettings):
        calibrate(settings)
    elif isinstance(settings, FaultsSettings):
        return faults(settings)
    elif isinstance(settings, StudySettings):
        return study(settings)
    elif isinstance(settings, StepSpeedSettings):
        step_speed(settings)
    else:
        speed(settings)
    return None


if __name__ == "__main__":
    run(main, SETTINGS)
