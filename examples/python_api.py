"""The Python interface, as cells of a notebook (`# %%`): a run, its files, its features and predictions.

Shows: RunConfig and simulate, what a run directory holds, and how a trained prompt classifies images of yours.
Takes: about half a minute on two cores; with --smoke, seconds.

    python examples/python_api.py        # or open it as a notebook in an editor that knows cells
"""

# %% Settings: everything is checked here, before anything is loaded.
import json
import sys
from pathlib import Path

from fedgraft import Resources, RunConfig, simulate

SMOKE = "--smoke" in sys.argv
OUT = Path(sys.argv[sys.argv.index("--out") + 1] if "--out" in sys.argv else "runs/python-api")

# %% A federation. Worker processes start anew, so what starts them stands behind this line.
if __name__ == "__main__":
    config = RunConfig(
        method="promptfl",
        data="digits",
        sites=2 if SMOKE else 5,
        rounds=1 if SMOKE else 10,
        shots=2 if SMOKE else 64,
        method_options={"n_ctx": 4},
    )
    summary = simulate(config, OUT, resume=OUT.exists(), resources=Resources(workers=1))
    print({name: round(value, 1) for name, value in summary["metrics"].items()})

    # %% What is on disk: a row for each round and scope.
    rows = [json.loads(line) for line in (OUT / "metrics.jsonl").read_text().splitlines()]
    print([(row["round"], round(row["accuracy"], 1)) for row in rows if row.get("scope") == "novel"])

    # %% The trained prompt: class features (C, dim) beside those of images (n, dim).
    from fedgraft.edge_export.trained_run import TrainedRun, class_features

    trained = TrainedRun.open(OUT, "global")
    examples, names = trained.plan.open_examples(), trained.split.class_names
    classes = class_features(trained.adapter(names), names)
    images = trained.backbone.encode_images(trained.backbone.preprocess([examples.load(i) for i in range(8)]))
    predicted = (images @ classes.T).argmax(dim=1)
    print([(names[guess], names[label]) for guess, label in zip(predicted, examples.labels[:8], strict=True)])
