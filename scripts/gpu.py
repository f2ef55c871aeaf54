#!/usr/bin/env python
"""Run on a GPU the tests marked cuda and scripts/benchmark, and write one JSON file.

    scripts/gpu                     # outputs/gpu/cuda.json: versions, the card's name, results of tests, figures
    scripts/gpu --device cpu        # tries the script without a GPU: the same at a small size

The exit code is 1 if a test or a benchmark failed; the file is written all the same.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import benchmark
import torch

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("step", "sample", "input", "startup")
FAST = ("compile=true", "channels_last=true")
SMALL = ("--rounds=2", "--seconds=0.01", "--batch=8", "--steps=2", "model=unet_tiny", "model.channels=8")
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "cuda": {"step": (), "step, fast": FAST, "sample": (), "sample, fast": FAST, "input": (), "startup": ()},
    "cpu": {**dict.fromkeys(COMMANDS, SMALL), "startup": ("--rounds=1",)},
}
"""arguments of each benchmark; its name begins with the command"""


def run_tests(device: str, report: Path) -> dict[str, Any]:
    """Run the tests marked cuda; return the number of each outcome, and the outcome of each test."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", f"--device={device}", f"--junitxml={report}"]
    code = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    tests = []
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        (problem, *_) = [*(child for child in case if child.tag in ("failure", "error", "skipped")), None]
        found = {"name": f"{case.get('classname')}.{case.get('name')}", "seconds": float(case.get("time", 0))}
        found["outcome"] = "passed" if problem is None else problem.tag
        if problem is not None:
            found["message"] = problem.get("message")
        tests.append(found)
    return {"exit_code": code, "outcomes": Counter(str(test["outcome"]) for test in tests), "tests": tests}


def run_benchmark(name: str, device: str, options: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run `scripts/benchmark` in a process of its own, and return what it wrote, or its error."""
    command = name.split(",")[0]
    script = Path(benchmark.__file__)
    words = [sys.executable, str(script), command, f"--device={device}", f"--out={folder}", *options]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return {"error": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads((folder / f"{command}.json").read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=OPTIONS)
    parser.add_argument("--out", type=Path, help="the JSON file; outputs/gpu/DEVICE.json if not given")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, f"gpu: torch {torch.__version__} finds no NVIDIA GPU here; --device cpu tries the script.\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = run_tests(args.device, folder / "tests.xml")
        benchmarks = {
            name: run_benchmark(name, args.device, options, folder) for name, options in OPTIONS[args.device].items()
        }
    facts = benchmark.about(args)
    if args.device == "cuda":
        capability = torch.cuda.get_device_capability()
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "capability": capability}
    path = args.out or ROOT / "outputs" / "gpu" / f"{args.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "tests": tests, "benchmarks": benchmarks}, indent=2) + "\n")
    failed = [name for name, found in benchmarks.items() if "error" in found]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in tests["outcomes"].items())
    print(f"{facts['device']}: tests: {outcomes or 'none ran'}; benchmarks that failed: {', '.join(failed) or 'none'}")
    print(path)
    return int(bool(tests["exit_code"] or failed))


if __name__ == "__main__":
    sys.exit(main())
