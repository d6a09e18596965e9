"""docs/images/resume.png: the loss of a quickstart that was killed and resumed. Needs matplotlib.

`python benchmarks/plot_resume.py quickstart/run docs/images/resume.png`
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from pretrain.training.metrics import read_lines


def main(run: Path, image: Path) -> None:
    final = {line["step"]: line["loss"] for line in read_lines(run / "metrics.jsonl")}
    (replaced,) = (run / "logs").glob("replaced-*-metrics.jsonl")
    first = {line["step"]: line["loss"] for line in read_lines(replaced)}
    valid = {line["step"]: line["loss"] for line in read_lines(run / "evaluations.jsonl")}
    killed = max(first)
    steps = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    saved = next(step for step in (60, *steps) if step <= killed)
    twice = [step for step in first if step > saved]
    same = sum(first[step] == final[step] for step in twice)

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axis = plt.subplots(figsize=(8.4, 3.4), dpi=140)
    axis.plot(list(final), list(final.values()), color="#2563eb", linewidth=1.2, label="training")
    axis.plot(list(valid), list(valid.values()), "o-", color="#059669", markersize=4, linewidth=1, label="held out")
    axis.plot(twice, [first[s] for s in twice], ".", color="#dc2626", markersize=5, label="before the kill")
    axis.axvspan(saved, killed, color="#dc2626", alpha=0.08)
    axis.annotate(
        f"kill -9 after step {killed}, resumed from {saved}:\n{same} of {len(twice)} steps done again have the same loss,\n"
        "to the last bit",
        xy=(killed, first[killed]),
        xytext=(killed + 22, first[killed] + 1.5),
        arrowprops={"arrowstyle": "->", "color": "#444444"},
    )
    axis.set(xlabel="optimizer step", ylabel="loss (nats a token)", xlim=(0, max(final)))
    axis.legend(frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(image)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
