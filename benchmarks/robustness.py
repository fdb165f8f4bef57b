import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz import READERS, campaign, reasons, summary
from config import DataSettings, FaultsSettings, MatchingSettings, PredictSettings
from copymove.detect import detect_copies
from images.cache import ImageCache, read_letterboxed
from images.folders import find_images
from images.read import read_image
from runtime.command_line import to_dict
from runtime.errors import InputError
from runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent


FAST = ("--evidence-only", "--matching-kinds", "exact")  # the quickest way through predict.py


ANSWERS = (0, 3, 4, 5)  # statuses of predict.py at the end of a whole run


class Report:
    """Prints what was tried and counts what failed."""

    def __init__(self) -> None:
        self.failed = 0

    def say(self, text: str) -> None:
        """Something that was tried or measured."""
        print(text, flush=True)

    def check(self, good: bool, text: str) -> None:
        """Something that must hold."""
        self.failed += not good
        print(f"{'ok  ' if good else 'FAULT'} {text}", flush=True)


def faults(settings: FaultsSettings) -> int:
    """Try everything that is asked for; 1 where anything failed."""
    report = Report()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if settings.out is None else settings.out
        out.mkdir(parents=True, exist_ok=True)
        for kind in settings.kinds:
            begun = time.monotonic()
            print(f"-- {kind}", flush=True)
            PARTS[kind](settings, out / kind, report)
            print(f"-- {kind}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{report.failed} faults")
    return 1 if report.failed else 0


class Script(subprocess.Popen):
    """One of the scripts in a group of processes of its own; under torchrun with more than one rank.

    What it prints goes to a file: a pipe that nobody reads fills up with progress bars, and the script waits for ever.
    """

    def __init__(self, *arguments: object, ranks: int = 1, env: dict[str, str] | None = None, **options: Any) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "--max-restarts=3"]
        command = [sys.executable, *(launcher if ranks > 1 else []), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (env or {})
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `finish` closes it
        super().__init__(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=self.said, stderr=subprocess.STDOUT,
            **options,
        )  # fmt: skip

    def finish(self) -> tuple[int, str]:
        """Wait for the end: exit status and what was printed."""
        status = self.wait()
        with self.said as said:
            said.seek(0)
            return status, said.read()


def kill(process: Script) -> None:
    """End the whole group as `kill -9` does. torchrun puts ranks into sessions of their own: these too."""
    for pid in [*family(process.pid), process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.finish()


def family(pid: int) -> list[int]:
    """Processes that this one has started, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, wanted = [], [pid]
    while wanted:
        own = children.get(wanted.pop(), [])
        found += own
        wanted += own
    return found


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(pid: int) -> list[int]:
    """The processes among `family` that work for this one: Python's spawned ones."""
    found = []
    for member in family(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"spawn_main" in Path(f"/proc/{member}/cmdline").read_bytes():
                found.append(member)
    return found


def memory(pid: int) -> float:
    """Resident memory of a process and all that it has started, in MiB; shared pages count once for each."""
    pages = 0
    for member in [pid, *family(pid)]:
        try:
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * resource.getpagesize() / 2**20


def processor_seconds(pid: int) -> float:
    """Processor time of a process and all that it has started, those that ended included."""
    ticks = 0
    for member in [pid, *family(pid)]:
        try:
            ticks += sum(map(int, Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON lines file; none where there is no such file. Raises ValueError where one is torn."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Callable[[], bool], process: Script, seconds: float = 300.0) -> bool:
    """Whether the condition came true while the process was running."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def try_files(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Mutated files of every kind through the readers."""
    for kind in READERS:
        counts = campaign(kind, -(-settings.files // len(READERS)), settings.seed, out)
        report.check(counts["broken"] == 0, summary(kind, counts))
    for reason, count, example in reasons(out):
        report.say(f"     {count} like {example}: {reason}")


def try_bombs(settings: FaultsSettings, out: Path, report: Report) -> None:
    """A folder of hostile files and names through predict.py, as from a stranger."""

    folder, found = out / "in", out / "found"
    write_bombs(folder)
    before = {path for path in out.rglob("*") if found not in path.parents}
    begun = time.monotonic()
    process = Script("predict.py", folder, "--out", found, *FAST, "--num-workers", 2, env={"TMPDIR": str(out)})
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.05)
    status, said = process.finish()
    lines = {os.path.basename(line["path"]): line for line in lines_of(found / "predictions.jsonl")}
    report.say(f"     {len(lines)} images in {time.monotonic() - begun:.0f} s, {peak:.0f} MiB at most in all processes")
    report.check(status in ANSWERS, f"predict.py ends with status {status}")
    for name, line in sorted(lines.items()):
        report.say(f"     {name[:40]!r}: {line['verdict']}; {line.get('error', '').replace(str(folder), '')[:150]}")
    hostile = [name for name in lines if name.startswith(("bomb", "forms", "content", "sparse", "eps"))]
    refused = sum(lines[name]["verdict"] == "unreadable" for name in hostile)
    report.check(refused == len(hostile) == 6, f"{refused} of {len(hostile)} bombs are refused")
    for name in ("bomb.png", "bomb.pdf"):
        told = all(word in lines[name].get("error", "") for word in ("50000 x 50000", "200", "--max-megapixels"))
        report.check(told, f"{name}: the limit and the flag that raises it are told")
    good = [name for name in lines if name not in hostile]
    report.check(all(lines[n]["verdict"] == "nothing found" for n in good), f"{len(good)} odd names are examined")
    report.check("\x1b" not in said, "no control character reaches the terminal")
    after = {path for path in out.rglob("*") if found not in path.parents and path != found}
    report.check(after == before, f"nothing is written outside of --out {sorted(map(str, after - before))[:3]}")
    names = sorted(path.name for path in find_images(folder / "links") for path in [path.image])
    report.check(names == ["a.png"], f"links in a loop: training reads {names}")


def write_bombs(folder: Path) -> None:
    """Hostile files and names."""
    import cv2

    (folder / "links").mkdir(parents=True)
    image_file = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[
        1
    ].tobytes()
    for name in (b"new\nline.png", b"quote'\".png", b"a..png", b"\xff\xfe.png", b"=cmd()|A0.png", b"\x1b[31mred.png",
                 b"<script>alert(1)<.png", b"x" * 251 + b".png", b"links/a.png"):  # fmt: skip
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(image_file)
    (folder / "links" / "loop").symlink_to(folder / "links")
    (folder / "links" / "up").symlink_to(folder / "links" / "loop")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "a.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    write_png_bomb(folder / "bomb.png", 50_000)
    (folder / "sparse.png").write_bytes(image_file)
    os.truncate(folder / "sparse.png", 100 * 10**9)
    (folder / "eps.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
    )
    write_pdf_bombs(folder)


def write_png_bomb(path: Path, side: int) -> None:
    """A PNG of `side` x `side` black pixels, whole and valid."""
    packer, packed = zlib.compressobj(9), []
    for _ in range(side):
        packed.append(packer.compress(bytes(side + 1)))
    chunks = [(b"IHDR", side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])),
              (b"IDAT", b"".join(packed) + packer.flush()), (b"IEND", b"")]  # fmt: skip
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in chunks:
            file.write(len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big"))


def write_pdf_bombs(folder: Path) -> None:
    """Forms that draw forms, ten times each, eight deep; a page of 3 GB, packed; an image of 50,000 x 50,000."""
    image = (
        b"/Type/XObject/Subtype/Image/ColorSpace/DeviceGray/BitsPerComponent 8/Filter/FlateDecode/Width %d/Height %d"
    )
    small = pdf_stream(image % (100, 100), zlib.compress(bytes(range(100)) * 100))
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F %d 0 R>>>>"
    forms = [pdf_stream(form % number, b"/F Do " * 10) for number in range(6, 13)]
    write_pdf(folder / "forms.pdf", pdf_stream(b"", b"/F Do " * 10), [*forms, small])
    packer = zlib.compressobj(9)
    block = packer.compress(b"q Q " * (1 << 18)) + packer.flush(zlib.Z_FULL_FLUSH)
    later = packer.compress(b"q Q " * (1 << 18)) + packer.flush(zlib.Z_FULL_FLUSH)  # without the stream's header
    write_pdf(folder / "content.pdf", pdf_stream(b"/Filter/FlateDecode", block + later * 3000), [small])
    huge = pdf_stream(image % (50_000, 50_000), zlib.compress(bytes(10**7)))
    write_pdf(folder / "bomb.pdf", pdf_stream(b"", b"q 400 0 0 400 0 0 cm /F Do Q"), [huge])


def pdf_stream(entries: bytes, content: bytes) -> bytes:
    """A stream object of a PDF."""
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (entries, len(content), content)


def write_pdf(path: Path, content: bytes, objects: Sequence[bytes]) -> None:
    """A PDF of one page with this content; `/F` in it is the first of the objects, which are numbered from 5 on."""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>"
    tree = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    data, places = b"%PDF-1.7\n", []
    for number, item in enumerate([b"<</Type/Catalog/Pages 2 0 R>>", tree, page, content, *objects], 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, len(data))
    path.write_bytes(data + b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1) + table + end)


NAMES = (b"new\nline", b"quote'\"", b"a..b", b"\xff\xfe", b"=cmd()|A0", b"\x1b[31mred", b"<script>alert(1)<",
         b"x" * 240, b" ", b"-rf", b"a,b;c", b"caf\xc3\xa9", b"%s%n{}", b"*?[a]", b"$(id)`id`", b"con")  # fmt: skip


def try_names(settings: FaultsSettings, out: Path, report: Report) -> None:
    """A data set with hostile names through every script that reads one."""
    write_data(out / "data", len(NAMES))
    for number, name in enumerate(NAMES):
        for path in (out / "data").glob(f"*/{number}.*"):
            path.rename(path.parent / (os.fsdecode(name) + path.suffix))
    before = set(out.rglob("*"))
    there, best = out / "run", out / "run" / "train" / "best.pt"
    write_backbone(out / "run" / "backbone")
    train = training(out, "run/train", 1)
    train[train.index("--backbone") + 1] = out / "run" / "backbone"
    for command in (
        ["synthesis.py", "--authentic", out / "data" / "authentic", "--out", there / "synthesis", "--count", 20],
        [*train, "--cache", there / "cache"],
        ["tuning.py", "--data", out / "data", "--checkpoint", best, "--trials", 3, "--out", there / "tuned.json"],
        ["test.py", "--data", out / "data", "--split", "all", "--checkpoint", best, "--out", there / "test", "--modes",
         "embedding"],
        prediction(out / "data", there / "predict"),
        ["benchmark.py", "accuracy", "--data", out / "data", "--matching-kinds", "exact", "--num-workers", 1, "--records",
         there / "records.jsonl"],
    ):  # fmt: skip
        status, said = Script(*command, env={"TMPDIR": str(there)}).finish()
        hostile = "\x1b[31m" in said
        report.check(
            status in (0, 3) and not hostile,
            f"odd names through {command[0]}: status {status} {said[-300:] if status not in (0, 3) else ''}",
        )
    after = {path for path in out.rglob("*") if path != there and there not in path.parents}
    report.check(after == before, f"nothing is written outside of --out {sorted(map(str, after - before))[:3]}")
    count = len(findings(there / "predict"))
    report.check(count == 2 * len(NAMES), f"{count} predictions of {2 * len(NAMES)} images")


def write_backbone(folder: Path) -> None:
    """A tiny DINOv2 of random weights."""
    from backbones import random_backbone

    small = random_backbone(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56)
    small.save_pretrained(folder)


def write_data(folder: Path, count: int, side: int = 100) -> None:
    """`count` base images of grain, each authentic and forged: a square that stands twice."""
    import cv2

    rng = np.random.default_rng(0)
    for name in ("authentic", "forged", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 1.5)
        cv2.imwrite(str(folder / "authentic" / f"{number}.png"), image)
        mask = np.zeros((1, side, side), np.uint8)
        patch = cv2.GaussianBlur(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8), (0, 0), 1.5)
        for y, x in ((3, 5), (55, 40)):
            image[y : y + 30, x : x + 30] = patch
            mask[0, y : y + 30, x : x + 30] = 1
        cv2.imwrite(str(folder / "forged" / f"{number}.png"), image)
        np.save(folder / "masks" / f"{number}.npy", mask)


def training(out: Path, run: str, epochs: int, seconds: float = 0.5) -> list[object]:
    """The command line of a small training."""
    return ["train.py", "--data", out / "data", "--out", out / run, "--backbone", out / "backbone", "--epochs", epochs,
            "--batch-size", 2, "--gradient-accumulation-steps", 2, "--num-workers", 0, "--synthesis-probability", 0.5, "--image-size", 56,
            "--head-widths", 16, "--embedding-size", 8, "--checkpoint-seconds", seconds, "--patience", 99]  # fmt: skip


def try_training(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Killed, restarted, out of disk: the run that goes on equals one that never stopped."""
    write_data(out / "data", 24)
    write_backbone(out / "backbone")
    for name, epochs in (("whole", 24), ("short", 6)):
        status, said = Script(*training(out, name, epochs), ranks=2).finish()
        report.check(status == 0, f"two ranks, never stopped: status {status} {said[-200:] if status else ''}")
    kill_training(settings, out, report)
    terminate_training(settings, out, report)
    kill_one_rank(out, report)
    kill_torchrun(out, report)
    fill_the_disk(out, report)


def kill_training(settings: FaultsSettings, out: Path, report: Report) -> None:
    """kill -9 of everything at random moments, each time followed by --resume."""
    draw, last, run = random.Random(settings.seed), out / "killed" / "last.pt", out / "killed"
    log, moments = run / "log.jsonl", Counter()
    for number in range(settings.kills):
        process = Script(*training(out, "killed", 24), *(["--resume"] if last.exists() else []), ranks=2)
        if number % 5 == 4:  # while it starts
            time.sleep(draw.uniform(0, 12))
        else:  # while it trains, validates and saves
            size = log.stat().st_size if log.exists() else 0
            if wait_until(lambda size=size: log.exists() and log.stat().st_size > size, process):
                time.sleep(draw.uniform(0, 1.2))
        if process.poll() is not None:
            break
        kill(process)
        whole_checkpoint(run / "best.pt", report)
        moments[whole_checkpoint(last, report)] += 1
    report.say(f"     epoch and step of last.pt after each kill: {dict(moments)}")
    report.check(sum(moments.values()) == settings.kills, f"{sum(moments.values())} kills, then on to the end")
    status, said = Script(*training(out, "killed", 24), *(["--resume"] if last.exists() else []), ranks=2).finish()
    report.check(status == 0, f"the killed run ends, status {status} {said[-300:] if status else ''}")
    compare_runs(out, "killed", report, "whole")
    left = sorted(path.name for path in run.glob(".*"))
    report.check(not left, f"no temporary file is left behind {left[:4]}")


def whole_checkpoint(path: Path, report: Report) -> str:
    """Where a checkpoint stands; a half written one is a fault."""
    from checkpoints import load_checkpoint

    if not path.exists():
        return "none"
    try:
        progress = load_checkpoint(path).get("progress", {})
    except InputError as fault:
        report.check(False, f"a checkpoint is damaged after a kill: {fault}")
        return "damaged"
    return f"{progress.get('epoch')}/{progress.get('step')}"


def terminate_training(settings: FaultsSettings, out: Path, report: Report) -> None:
    """SIGTERM to torchrun, and every second time to its ranks too, which then get it twice; nothing may be lost."""
    draw, run = random.Random(settings.seed), out / "terminated"
    for number in range(4):
        resume = ["--resume"] if (run / "last.pt").exists() else []
        process, log = Script(*training(out, "terminated", 6, 600), *resume, ranks=2), run / "log.jsonl"
        size = log.stat().st_size if log.exists() else 0
        if wait_until(lambda size=size, log=log: log.exists() and log.stat().st_size > size, process):
            time.sleep(draw.uniform(0, 0.5))
        for pid in [*(family(process.pid) if number % 2 else []), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        status, said = process.finish()
        done = whole_checkpoint(run / "last.pt", report)
        report.check(status != 0 and "interrupted after" in said, f"SIGTERM: status {status}, saved at {done}")
    Script(*training(out, "terminated", 6, 600), "--resume", ranks=2).finish()
    compare_runs(out, "terminated", report, "short")


def kill_one_rank(out: Path, report: Report) -> None:
    """kill -9 of the second rank; torchrun starts both again, and they go on from the last checkpoint."""
    process, log = Script(*training(out, "rank", 6), ranks=2), out / "rank" / "log.jsonl"
    wait_until(lambda: (out / "rank" / "last.pt").exists() and log.read_bytes().count(b"\n") > 8, process)
    ranks = {rank_of(pid): pid for pid in family(process.pid)}
    if "1" not in ranks:
        report.check(False, f"found no second rank to kill among {ranks}")
        kill(process)
        return
    os.kill(ranks["1"], signal.SIGKILL)
    status, said = process.finish()
    again = said.count("going on at epoch")
    why = said[-1500:] if status else ""
    report.check(status == 0 and again == 1, f"one rank killed: status {status}, went on {again} time(s) {why}")
    compare_runs(out, "rank", report, "short")


def kill_torchrun(out: Path, report: Report) -> None:
    """kill -9 of torchrun alone: its ranks end too, and do not go on beside the run that is resumed."""
    process, last = Script(*training(out, "launcher", 6), ranks=2), out / "launcher" / "last.pt"
    wait_until(last.exists, process)
    ranks = family(process.pid)
    process.kill()
    process.finish()
    end = time.monotonic() + 20
    while any(map(lives, ranks)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [pid for pid in ranks if lives(pid)]
    report.check(not left and len(ranks) >= 2, f"torchrun killed: {len(ranks)} processes of it, {len(left)} live on")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    Script(*training(out, "launcher", 6), "--resume", ranks=2).finish()
    compare_runs(out, "launcher", report, "short")


def rank_of(pid: int) -> str:
    """RANK in the environment of a process; empty without."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    return next((v[5:].decode() for v in variables if v.startswith(b"RANK=")), "")


def fill_the_disk(out: Path, report: Report) -> None:
    """No file may grow beyond half a checkpoint: the last good one stays, and one line says what happened."""
    process = Script(*training(out, "full", 3))
    wait_until((out / "full" / "last.pt").exists, process)
    process.send_signal(signal.SIGTERM)
    process.finish()
    last = out / "full" / "last.pt"
    before, limit = last.read_bytes(), last.stat().st_size // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    status, said = Script(*training(out, "full", 3), "--resume", preexec_fn=limited).finish()
    message = next((line for line in said.splitlines() if "error:" in line), "")
    report.check(status == 2 and "Traceback" not in said, f"full disk: status {status}, {message!r}")
    report.check(last.read_bytes() == before, "full disk: the last good checkpoint is untouched")
    report.check(not list((out / "full").glob(".*.tmp")), "full disk: no temporary file stays")
    status, _ = Script(*training(out, "full", 3), "--resume").finish()
    Script(*training(out, "one", 3)).finish()
    report.check(status == 0, f"with space again it goes on to the end, status {status}")
    compare_runs(out, "full", report, "one")


def compare_runs(out: Path, run: str, report: Report, whole: str) -> None:
    """Weights and log of two runs must be equal to 1e-6."""
    import torch

    states = [torch.load(out / name / "last.pt", weights_only=True) for name in (whole, run)]
    heads = [state["model"]["head"] for state in states]
    apart = max(float((heads[0][name] - heads[1][name]).abs().max()) for name in heads[0])
    logs = [lines_of(out / name / "log.jsonl") for name in (whole, run)]
    far = max((abs(a[key] - b[key]) for a, b in zip(*logs, strict=False) for key in a
               if isinstance(a[key], int | float) and key != "seconds"), default=0.0)  # fmt: skip
    same = len(logs[0]) == len(logs[1]) and states[0]["progress"] == states[1]["progress"]
    report.check(
        apart <= 1e-6 and far <= 1e-6 and same,
        f"{run} equals {whole}: weights differ by {apart:g}, {len(logs[1])} of {len(logs[0])} log lines by {far:g}",
    )


def write_images(folder: Path, count: int, side: int = 96) -> None:
    """Small images of grain; in every third one a square stands twice."""
    import cv2

    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 1.2)
        if number % 3 == 0:
            image[55:90, 50:85] = image[4:39, 6:41]
        cv2.imwrite(str(folder / f"{number:05}.png"), image)


def prediction(folder: Path, out: Path, *more: object) -> list[object]:
    """The command line of a quick prediction."""
    return ["predict.py", folder, "--out", out, *FAST, "--num-workers", 2, *more]


def findings(out: Path) -> list[dict[str, Any]]:
    """The lines of a run without what may differ between two runs."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(out / "predictions.jsonl")]


def try_prediction(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Killed runs, killed workers, and files that change under the run."""
    write_images(out / "in", 500)
    status, _ = Script(*prediction(out / "in", out / "whole")).finish()
    report.check(status == 3 and len(findings(out / "whole")) == 500, f"500 images, never stopped: status {status}")
    kill_prediction(settings, out, report)
    kill_workers(settings, out, report)
    kill_ranks_of_prediction(settings, out, report)
    change_files(settings, out, report)
    fill_the_disk_of_predictions(out, report)


def kill_prediction(settings: FaultsSettings, out: Path, report: Report) -> None:
    """kill -9 of everything at random moments, each time followed by --resume."""
    draw, after = random.Random(settings.seed), []
    for number in range(settings.kills):
        resume = ["--resume"] if (out / "killed" / "settings.json").exists() else []
        process = Script(*prediction(out / "in", out / "killed", *resume))
        least = lines_in(out / "killed") + 1
        if 4 * number >= 3 * settings.kills:  # all are examined: while it sorts them and writes the page
            least = 500
        wait_until(lambda least=least: lines_in(out / "killed") >= least, process)
        time.sleep(draw.uniform(0, 0.4))
        if process.poll() is not None:
            break
        kill(process)
        after.append(lines_in(out / "killed"))
    status, _ = Script(*prediction(out / "in", out / "killed", "--resume")).finish()
    report.check(
        status == 3 and len(after) == settings.kills,
        f"{len(after)} kills, after which {after} lines were there; the last run ends with {status}",
    )
    same = findings(out / "killed") == findings(out / "whole")
    report.check(same, "killed and resumed: every image once, the same lines as never stopped")
    image_files = [len(list((out / name / "report" / "images").iterdir())) for name in ("whole", "killed")]
    left = [path.name for path in (out / "killed").rglob(".*")]
    report.check(
        image_files[0] == image_files[1] and not left, f"{image_files[1]} illustrated, left behind: {left[:3]}"
    )


def kill_workers(settings: FaultsSettings, out: Path, report: Report) -> None:
    """kill -9 of workers at random moments, as when memory runs out: each costs at most the image that it had."""
    draw, process = random.Random(settings.seed), Script(*prediction(out / "in", out / "worker"))
    lines, killed = out / "worker" / "predictions.jsonl", 0
    while killed < settings.kills:
        size = lines.stat().st_size if lines.exists() else 0
        wait_until(lambda size=size: lines.exists() and lines.stat().st_size > size, process)
        time.sleep(draw.uniform(0, 0.2))
        workers = workers_of(process.pid)
        if process.poll() is not None or not workers:
            break
        with suppress(ProcessLookupError):
            os.kill(draw.choice(workers), signal.SIGKILL)
        killed += 1
    status, _ = process.finish()
    true, got = ({line["path"]: line for line in findings(out / name)} for name in ("whole", "worker"))
    lost = [path for path in got if got[path]["verdict"] == "unreadable"]
    same = all(got[path] == true[path] for path in got.keys() - set(lost))
    report.check(
        status in (3, 5) and got.keys() == true.keys() and len(lost) <= killed and same,
        f"{killed} workers killed in one run: status {status}, {len(got)} lines, {len(lost)} images lost, the others "
        f"as never disturbed; {got[lost[0]]['error'] if lost else ''}",
    )


def kill_ranks_of_prediction(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Two ranks killed and resumed by one, two and three; then one rank killed, after which torchrun starts again."""
    draw, there = random.Random(settings.seed), out / "ranks"
    for ranks in (2, 1, 3, 2):
        resume = ["--resume"] if (there / "settings.json").exists() else []
        process = Script(*prediction(out / "in", there, *resume), ranks=ranks)
        before = lines_in(there)
        wait_until(lambda before=before: lines_in(there) > before, process)
        time.sleep(draw.uniform(0, 0.3))
        kill(process)
    status, said = Script(*prediction(out / "in", there, "--resume"), ranks=2).finish()
    same = findings(there) == findings(out / "whole")
    report.check(
        status == 0 and same, f"4 jobs of 1 to 3 ranks killed, then resumed by two: status {status}, same lines"
    )
    there = out / "rank"
    process = Script(*prediction(out / "in", there), ranks=2)
    wait_until(lambda: lines_in(there) > 20, process)
    ranks_now = {rank_of(pid): pid for pid in family(process.pid) if pid not in workers_of(process.pid)}
    os.kill(ranks_now["1"], signal.SIGKILL)
    status, said = process.finish()
    same = findings(there) == findings(out / "whole")
    report.check(
        status == 0 and same,
        f"one rank killed: torchrun goes on, status {status}, same lines {said[-200:] if status else ''}",
    )


def lines_in(out: Path) -> int:
    """Lines that all ranks together have written."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("predictions*.jsonl"))


def change_files(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Files that vanish, are cut off, become another image, a folder or a pipe while the run goes on."""
    shutil.copytree(out / "in", out / "moving")
    process, lines = Script(*prediction(out / "moving", out / "moved")), out / "moved" / "predictions.jsonl"
    wait_until(lambda: lines.exists() and lines.read_bytes().count(b"\n") > 5, process)
    draw, changed = random.Random(settings.seed), []
    for path in draw.sample(sorted((out / "moving").iterdir()), 100):
        changed.append(path)
        way = draw.randrange(5)
        if way == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif way == 1:
            path.write_bytes(b"no image")
        else:
            path.unlink()
            if way == 2:
                path.mkdir()
            elif way == 3:
                os.mkfifo(path)
    status, _ = process.finish()
    got = findings(out / "moved")
    lost = [line for line in got if line["verdict"] == "unreadable"]
    rest = {os.path.basename(line["path"]): line["verdict"] for line in got}
    true = {os.path.basename(line["path"]): line["verdict"] for line in findings(out / "whole")}
    untouched = true.keys() - {path.name for path in changed}
    report.check(
        status == 5 and len(got) == 500 and all(rest[name] == true[name] for name in untouched),
        f"100 of 500 files changed during the run: status {status}, {len(got)} lines, {len(lost)} unreadable",
    )


def fill_the_disk_of_predictions(out: Path, report: Report) -> None:
    """No file may grow beyond 40 KB; with space again the run goes on and loses nothing."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    status, said = Script(*prediction(out / "in", out / "full"), preexec_fn=limited).finish()
    message = next((line for line in said.splitlines() if "error:" in line), "")
    report.check(status == 2 and "Traceback" not in said, f"full disk: status {status}, {message!r}")
    status, _ = Script(*prediction(out / "in", out / "full", "--resume")).finish()
    report.check(status == 3 and findings(out / "full") == findings(out / "whole"), f"then resumed: status {status}")


def try_determinism(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Every script twice with the same seed: which files are the same to the bit."""
    write_data(out / "data", 12)
    write_backbone(out / "backbone")
    there = out / "run"  # the same both times: paths stand in the files
    commands = [
        ["synthesis.py", "--authentic", out / "data" / "authentic", "--out", there / "synthesis", "--count", 20],
        training(out, "run/train", 2),
        ["tuning.py", "--data", out / "data", "--checkpoint", there / "train" / "best.pt", "--trials", 8,
         "--out", there / "tuning" / "tuned.json"],
        ["test.py", "--data", out / "data", "--checkpoint", there / "train" / "best.pt", "--out", there / "test",
         "--modes", "embedding"],
        ["predict.py", out / "data", "--out", there / "predict", "--evidence-only", "--num-workers", 2,
         "--search-budget", 3600],  # a busy machine cuts no search short
    ]  # fmt: skip
    for turn in ("first", "second"):
        for command in commands:
            status, said = Script(*command).finish()
            report.check(
                status in (0, 3), f"{turn}: {command[0]} ends with {status} {said[-300:] if status == 1 else ''}"
            )
        there.rename(out / turn)
    for part in ("synthesis", "train", "tuning", "test", "predict"):
        equal, but_for, other = compare_folders(out / "first" / part, out / "second" / part)
        known = [name for name in other if any(Path(name).match(pattern) for pattern in MAY_DIFFER)]
        report.check(
            known == other,
            f"{part}: {equal} files equal to the bit, {len(but_for)} but for seconds {but_for[:4]}, other: {other}",
        )


MAY_DIFFER = ("*.html", "*.sqlite3", "events/*")  # dates stand in these


SECONDS = re.compile(rb'("seconds"|"images_per_second"): [0-9.e+-]+')


def compare_folders(a: Path, b: Path) -> tuple[int, list[str], list[str]]:
    """Of the files of both folders: how many are the same, which are so but for seconds, and which are not."""
    same, but_for, other = 0, [], []
    names = {path.relative_to(root) for root in (a, b) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        data = [(root / name).read_bytes() if (root / name).is_file() else b"" for root in (a, b)]
        if data[0] == data[1]:
            same += 1
        elif name.suffix in (".json", ".jsonl") and SECONDS.sub(b"", data[0]) == SECONDS.sub(b"", data[1]):
            but_for.append(str(name))
        else:
            other.append(str(name))
    return same, but_for, other


def try_equivariance(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Mirrored and turned by 90 degrees, a forged image gives the mirrored and turned masks."""
    from metrics import object_f1

    make_forgeries(out, 4 * settings.turned, settings.seed)
    turns = {"mirrored": lambda a: a[:, ::-1], "turned": np.rot90}
    values: dict[str, list[float]] = {name: [] for name in turns}
    empty = 0

    def masks(image: np.ndarray) -> np.ndarray:
        instances = detect_copies(np.ascontiguousarray(image), MatchingSettings(search_budget=300.0)).instances
        return np.array([instance.mask for instance in instances], bool).reshape(-1, *image.shape[:2])

    for image_file in (image_file for image_file in find_images(out / "data") if image_file.forged):
        image = read_image(image_file.image)
        plain, changed = masks(image), {name: masks(turn(image)) for name, turn in turns.items()}
        if not len(plain) and not any(map(len, changed.values())):
            empty += 1
            continue
        for name, turn in turns.items():
            expected = np.array([turn(mask) for mask in plain], bool).reshape(-1, *changed[name].shape[1:])
            values[name].append(object_f1(changed[name], expected))
            if values[name][-1] < 0.9:
                counts = f"{len(plain)} instances as it stands, {len(changed[name])} {name}"
                report.say(f"     {image_file.id}: oF1 {values[name][-1]:.3f}; {counts}")
        if len(values["turned"]) == settings.turned:
            break
    report.say(f"     {empty} further images in which nothing is found in any direction")
    for name, scores in values.items():
        good = sum(score >= 0.9 for score in scores)
        report.check(
            good == len(scores),
            f"{name}: oF1 at least 0.9 on {good} of {len(scores)} images with findings, mean {np.mean(scores):.3f}, "
            f"least {min(scores):.3f}",
        )


def make_forgeries(out: Path, count: int, seed: int) -> None:
    """Forgeries of the demo's images, shrunk to at most 360 px."""
    import cv2

    import demo

    demo.write_images(out / "demo")
    for path in (out / "demo").iterdir():
        image = cv2.imread(str(path))
        zoom = min(1.0, 360 / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        (out / "small").mkdir(exist_ok=True)
        cv2.imwrite(str(out / "small" / f"{path.stem}.png"), small)
    options = ["--panel-probability", 0, "--min-jpeg-quality", 90, "--max-jpeg-quality", 95, "--num-workers", 1]
    folders = ["--authentic", out / "small", "--out", out / "data"]
    Script("synthesis.py", *folders, "--count", count, "--authentic-count", 1, "--seed", seed, *options).finish()


def try_load(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Many images, many readers of one cache, many lines."""
    predict_many(settings, out, report)
    read_one_cache(out, report)
    resume_many_lines(settings, out, report)


def predict_many(settings: FaultsSettings, out: Path, report: Report) -> None:
    """Memory stays flat and the rate the same from the first to the last thousand; the page opens."""
    write_varied(out / "in", settings.image_files, settings.seed)
    process, lines = Script(*prediction(out / "in", out / "found")), out / "found" / "predictions.jsonl"
    marks: list[tuple[int, float, float, float]] = []  # lines, seconds, processor seconds, MiB
    begun, count, place = time.monotonic(), 0, 0
    step = max(1, settings.image_files // 10)
    while process.poll() is None:
        if lines.exists():
            with lines.open("rb") as file:
                file.seek(place)
                block = file.read()
            count, place = count + block.count(b"\n"), place + len(block)
        if not marks or count >= marks[-1][0] + step:
            marks.append((count, time.monotonic() - begun, processor_seconds(process.pid), memory(process.pid)))
            report.say("     {} images after {:.0f} s, {:.0f} of the processor, {:.0f} MiB".format(*marks[-1]))
        time.sleep(0.05)
    status, said = process.finish()
    report.check(status in ANSWERS, f"{settings.image_files} images: status {status}; {said.strip().splitlines()[-2:]}")
    if len(marks) > 3:
        wall, cpu = ([(b[0] - a[0]) / (b[k] - a[k]) for a, b in itertools.pairwise(marks)] for k in (1, 2))
        # By the processor's time: what else the machine does has less influence on it.
        report.check(
            abs(cpu[-1] / cpu[0] - 1) <= 0.2,
            f"first and last {step}: {cpu[0]:.1f} and {cpu[-1]:.1f} images per processor second "
            f"({wall[0]:.1f} and {wall[-1]:.1f} per second)",
        )
        report.check(
            marks[-1][3] < 1.1 * marks[1][3] + 50, f"memory {marks[1][3]:.0f} MiB at first, {marks[-1][3]:.0f} at last"
        )
    open_page(out / "found" / "report" / "index.html", settings.image_files, report)


def write_varied(folder: Path, count: int, seed: int) -> None:
    """Images of 256 to 512 px, cut from the demo's, every fifth with a square that stands twice."""
    import cv2
    from tqdm import tqdm

    import demo

    demo.write_images(folder.parent / "demo")
    sources = [cv2.imread(str(path)) for path in sorted((folder.parent / "demo").iterdir())]
    sources = [s if min(s.shape[:2]) >= 512 else cv2.resize(s, (640, 640)) for s in sources]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in tqdm(range(count), desc="images", disable=not sys.stderr.isatty()):
        source = sources[rng.integers(len(sources))]
        height, width = rng.integers(256, 513, 2)
        y, x = rng.integers(source.shape[0] - height + 1), rng.integers(source.shape[1] - width + 1)
        image = source[y : y + height, x : x + width].copy()
        if number % 5 == 0:
            image[height - 70 : height - 10, width - 90 : width - 10] = image[10:70, 10:90]
        cv2.imwrite(str(folder / f"{number:06}.jpg" if number % 2 else folder / f"{number:06}.png"), image)


def open_page(page: Path, count: int, report: Report) -> None:
    """The page in a headless browser, where there is one."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        report.say("     no chromium here: the page was not opened")
        return
    begun = time.monotonic()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=300, errors="replace"
    )
    shown = done.stdout.count('class="card"')
    report.check(
        shown > 0 and done.returncode == 0,
        f"page of {count} images, {page.stat().st_size / 1e6:.1f} MB, opens in {time.monotonic() - begun:.1f} s "
        f"({shown} cards shown)",
    )


def read_one_cache(out: Path, report: Report) -> None:
    """Sixteen processes read images through one cache that holds half of them; all get what decoding gives."""
    import multiprocessing

    write_data(out / "cached", 10)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(16, mp_context=context) as pool:
        wrong = list(pool.map(partial(_read_through, out / "cached", out / "cache"), range(16)))
    sizes = [path.stat().st_size for path in (out / "cache").glob("*.image")]
    report.check(sum(wrong) == 0, f"16 processes on one cache: {sum(wrong)} of {16 * 60} images wrong")
    report.check(0 < sum(sizes) <= 400_000, f"the cache holds {len(sizes)} images, {sum(sizes)} of 400000 bytes")


def _read_through(data: Path, cache: Path, seed: int) -> int:

    image_files, settings = find_images(data), DataSettings(data=data)
    shared = ImageCache(cache, 400_000 / 1e9, 112)
    wrong = 0
    for index in np.random.default_rng(seed).integers(0, len(image_files), 60):
        cached, plain = (read_letterboxed(image_files[index], 112, settings, c) for c in (shared, None))
        wrong += not (np.array_equal(cached.image, plain.image) and np.array_equal(cached.coverage, plain.coverage))
    return wrong


def resume_many_lines(settings: FaultsSettings, out: Path, report: Report) -> None:
    """A run that has a million lines and one image left to do: how long until that image is taken up."""
    import predict

    write_images(out / "last", 1)
    there = out / "lines"
    run = PredictSettings(
        paths=(out / "last",), out=there, evidence_only=True, resume=True, num_workers=0,
        matching=MatchingSettings(matching_kinds=("exact",)),
    )  # fmt: skip
    there.mkdir(parents=True)
    write_json(there / "settings.json", to_dict(run))
    job = predict.Job("/nowhere/0.png")
    line = json.dumps(
        predict.unreadable(job, "made for the test").copy() | {"verdict": predict.NOTHING, "seconds": 0.123}
    )
    with (there / "predictions.jsonl").open("w") as file:
        for number in range(settings.lines):
            file.write(line.replace("/nowhere/0.png", f"/nowhere/{number:07}.png") + "\n")
    begun, processor = time.monotonic(), time.process_time()
    predict.prepare(run, predict.read_ranks())
    done, _ = predict.read_done(there)
    seconds, processor = time.monotonic() - begun, time.process_time() - processor
    # By the processor's time: what else the machine does has less influence on it.
    report.check(
        len(done) == settings.lines and processor < 10,
        f"{settings.lines} lines: the run goes on after {seconds:.1f} s, {processor:.1f} s of the processor",
    )
    del done
    with (there / "predictions.jsonl").open("a") as file:
        file.write(line.replace("/nowhere/0.png", "/nowhere/00.png") + "\n")  # belongs to the front
    before, processor = memory(os.getpid()), time.process_time()
    predict.merge(there)
    report.say(
        f"     sorting one more in: {time.process_time() - processor:.1f} s of the processor, "
        f"{memory(os.getpid()) - before:.0f} MiB more"
    )


PARTS: dict[str, Callable[[FaultsSettings, Path, Report], None]] = {
    "files": try_files,
    "bombs": try_bombs,
    "names": try_names,
    "training": try_training,
    "prediction": try_prediction,
    "determinism": try_determinism,
    "equivariance": try_equivariance,
    "load": try_load,
}
