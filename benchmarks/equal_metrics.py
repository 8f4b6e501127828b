"""Whether two versions of fedgraft measure the same to the last digit: a run of every kind through the command line.

    python -m benchmarks.equal_metrics --out before.json --fedgraft OTHER/.venv/bin/fedgraft
    python -m benchmarks.equal_metrics --out after.json --against before.json

Every method, strategy, protocol and partition, views, a run that is killed and resumed, two exports and a deployment
over TLS; each is a few rounds. All of `metrics.jsonl` counts but seconds and downlink bytes, which grow with the
configuration that a message carries; what only one of the versions measures is not compared. Both versions run on one
machine.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = (
    "zeroshot", "local", "promptfl", "fedpgp", "kgcoop", "proxprompt", "fedit", "ffa-lora", "fedsa-lora", "fedex-lora",
    "flora", "flexlora", "clip-adapter", "cocoop", "dpt", "fedclip", "feddpa", "fedmgp", "fedotp", "fedpha", "fedtpg",
    "hetlora", "hicropl", "ivlp", "linear-probe", "lora-fair", "maple", "matryoshka", "pfedmma", "pfedmoap", "plot",
    "prograd", "promptfolio", "promptsrc", "rolora", "tip-adapter", "vpt",
)  # fmt: skip
STRATEGIES = (
    "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "central-dp", "adaptive-dp", "local-dp", "interpolate",
    "fedavgm", "fedadam", "fedyogi", "anchored", "drift", "local-dp+median+fedavgm",
    "trimmed-mean+anchored(drift=0.01)",
)  # fmt: skip
SMALL = ["--data", "digits", "--sites", "5", "--rounds", "2", "--shots", "8"]
SHAPES = ["--data", "shapes", "--sites", "8", "--rounds", "2", "--shots", "4"]
CASES: dict[str, list[str]] = {
    **{f"method {name}": ["--method", name, *SMALL] for name in METHODS},
    **{f"strategy {name}": ["--method", "promptfl", "--strategy", name, *SHAPES] for name in STRATEGIES},
    "step behind a method's own rule": ["--method", "fedex-lora", "--strategy", "anchored(drift=0.01)", *SMALL],
    "ranks that differ": ["--method", "flora", "--set", "ranks=4,2", *SMALL],
    "ranks of flexlora": ["--method", "flexlora", "--set", "ranks=4,2", *SMALL],
    "ranks of hetlora": ["--method", "hetlora", "--set", "ranks=4,2", *SMALL],
    "image tower": ["--method", "fedit", "--set", "tower=both", "--set", "layers=1", *SMALL],
    "fewer participants": ["--method", "fedpgp", "--participation", "0.5", *SMALL],
    "views": ["--method", "fedpgp", "--views", "3", *SMALL],
    "sgd": ["--method", "promptfl", "--set", "optimizer=sgd", "--set", "momentum=0.9", *SMALL],
    "leave-one-domain-out": ["--method", "fedpgp", "--protocol", "leave-one-domain-out", *SHAPES],
    "characters": ["--method", "fedit", "--data", "characters", "--protocol", "leave-one-domain-out", *SMALL[2:]],
    "dirichlet": ["--method", "fedpgp", "--protocol", "dirichlet", "--set", "partition=dirichlet", *SMALL],
    "pathological": ["--method", "promptfl", "--protocol", "dirichlet", "--set", "partition=pathological", *SMALL],
    "iid": ["--method", "promptfl", "--protocol", "dirichlet", "--set", "partition=iid", *SMALL],
    "many sites": [
        "--method",
        "fedpgp",
        "--protocol",
        "dirichlet",
        "--data",
        "digits",
        "--sites",
        "40",
        "--rounds",
        "2",
    ],
    "seed": ["--method", "fedpgp", "--seed", "3", *SMALL],
}
_VOLATILE = ("seconds", "training_seconds", "downlink_bytes_per_site")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fedgraft", default=str(Path(sys.executable).parent / "fedgraft"), help="the command")
    parser.add_argument("--against", type=Path, help="an earlier --out")
    parser.add_argument("--photos", type=Path, help="a folder domain/class/image for the deployment; without, none")
    parser.add_argument("--only", help="cases whose name begins so")
    arguments = parser.parse_args()
    done: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in _cases(arguments.fedgraft, Path(folder), arguments.photos).items():
            if name in done or not name.startswith(arguments.only or ""):
                continue
            began = time.monotonic()
            done[name] = case()
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
            arguments.out.write_text(json.dumps(done, indent=1) + "\n")
    if arguments.against:
        before = json.loads(arguments.against.read_text())
        different = [name for name in before if name in done and _differ(done[name], before[name])]
        print(f"{len(before.keys() & done.keys())} cases, {len(different)} differ: {', '.join(different) or 'none'}")
        sys.exit(bool(different))


def _cases(command: str, folder: Path, photos: Path | None) -> dict[str, Any]:
    def simulated(name: str, arguments: list[str]) -> Any:
        out = folder / hashlib.sha256(name.encode()).hexdigest()[:12]
        _run(command, "simulate", *arguments, "--out", out)
        return _result(out)

    def exported(*arguments: str) -> Any:
        run = folder / "exported"
        if not run.exists():
            _run(command, "simulate", "--method", "fedpgp", *SMALL, "--out", run)
        bundle = folder / f"bundle{len(list(folder.glob('bundle*')))}"
        said = _run(command, "export", run, "--out", bundle, "--key", folder / "key", *arguments)
        manifest = json.loads(said)["manifest"]
        return {key: manifest[key] for key in ("parity", "generalization", "calibration", "ticket", "model", "encoder")}

    cases: dict[str, Any] = {
        name: lambda name=name, arguments=arguments: simulated(name, arguments) for name, arguments in CASES.items()
    }
    cases["killed and resumed"] = lambda: _killed(command, folder / "killed")
    cases["export of a site"] = lambda: exported("--site", "1")
    cases["export, int8, structured"] = lambda: exported("--site", "2", "--quantize", "int8", "--sparsity", "0.25")
    if photos:
        cases["deployment"] = lambda: _deployed(command, folder / "up", photos)
    return cases


def _deployed(command: str, out: Path, photos: Path) -> Any:
    _run(command, "up", "--sites", "2", "--rounds", "2", "--data", f"folder:{photos}", "--out", out)
    return _result(out / "run")


def _killed(command: str, out: Path) -> Any:
    arguments = [command, "simulate", "--method", "fedpgp", *SMALL, "--rounds", "12", "--out", str(out), "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("checkpoints/*-000003.safetensors")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    _run(command, *arguments[1:-1], "--resume")
    return _result(out)


def _run(command: str, *arguments: str | Path) -> str:
    done = subprocess.run([command, *map(str, arguments), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def _result(out: Path) -> Any:
    summary = json.loads((out / "summary.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key not in _VOLATILE} for row in rows]
    digests = {
        scope: hashlib.sha256(json.dumps([row for row in kept if row["scope"] == scope]).encode()).hexdigest()
        for scope in sorted({row["scope"] for row in kept})
    }
    wanted = (
        "metrics",
        "metrics_last5",
        "zero_shot",
        "trainable_parameters",
        "shared_parameters",
        "privacy",
        "left_out",
    )
    return {**{key: summary[key] for key in wanted}, "rows": digests}


def _differ(one: Any, other: Any) -> bool:
    """Whether two results differ in what both have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return any(_differ(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one != other)


if __name__ == "__main__":
    main()
