"""Measure accuracy, speed and robustness, and fit what is shipped in weights/.

    python benchmark.py accuracy --data DIR [DIR ...] --jpeg 90         forgeries found, and false alarms
    python benchmark.py calibrate --data DIR --authentic DIR            writes weights/evidence.json
    python benchmark.py thresholds --left-out DIR [DIR ...]             of kinds that took no part in the fit
    python benchmark.py train-mask-refiner --data DIR [DIR ...]         writes weights/outline.onnx
    python benchmark.py train-content --data DIR [DIR ...]              writes weights/content.onnx
    python benchmark.py timing-search --image FILE                      search on the pixels, by size of the image
    python benchmark.py timing-learned --data DIR                       cascade, losses, tuning, image cache
    python benchmark.py timing-step --backbone NAME --batch-sizes 8 32  training steps and embedding on this device
    python benchmark.py ablation --train DIR --dev DIR --out DIR        variants of the learned path, with seeds
    python benchmark.py robustness --kinds files bombs training         hostile files, kills, load; an hour for all

Where a folder was made by synthesis.py, a JSON beside each image says how it was forged; `accuracy` then also prints
its forgeries by size of copy, kind of region, rotation, scale, blending and JPEG quality.
"""

from config import (
    AblationSettings,
    AccuracySettings,
    BenchmarkCommand,
    CalibrationSettings,
    ContentSettings,
    LearnedTimingSettings,
    MaskRefinerSettings,
    RobustnessSettings,
    SearchTimingSettings,
    StepTimingSettings,
    ThresholdSettings,
)
from runtime.command_line import parse_or_exit, run


def main(settings: BenchmarkCommand) -> int | None:
    """Run the chosen benchmark; its exit status, None for 0.

    Each one is imported only when it is chosen: `--help` answers at once, and `accuracy` never loads torch.
    """
    match settings:
        case AccuracySettings():
            from benchmarks.accuracy import measure_accuracy as benchmark
        case CalibrationSettings():
            from benchmarks.calibrate import calibrate as benchmark
        case ThresholdSettings():
            from benchmarks.thresholds import measure_thresholds as benchmark
        case MaskRefinerSettings():
            from benchmarks.train_mask_refiner import train_mask_refiner as benchmark
        case ContentSettings():
            from benchmarks.train_content import train_content as benchmark
        case SearchTimingSettings():
            from benchmarks.timing_search import time_search as benchmark
        case LearnedTimingSettings():
            from benchmarks.timing_learned import time_learned as benchmark
        case StepTimingSettings():
            from benchmarks.timing_learned import time_step as benchmark
        case AblationSettings():
            from benchmarks.ablation import run_ablation as benchmark
        case RobustnessSettings():
            from benchmarks.robustness import attack as benchmark
    return benchmark(settings)


if __name__ == "__main__":
    run(main, parse_or_exit(BenchmarkCommand))
