"""Small programs in place of SLURM's, for what the launcher itself does. A real SLURM is in tests/slurm."""

from pathlib import Path

import pytest

# `queue` holds lines "ID STATE REASON"; each program writes down how it was called.
PROGRAMS = {
    "sbatch": """
cat "${@: -1}" >"$HERE/submitted"
env >"$HERE/environment"
[ -e "$HERE/refuse" ] && { echo "sbatch: error: Invalid account" >&2; exit 1; }
id=$((1000 + $(wc -l <"$HERE/calls")))
echo "$id PENDING Priority" >>"$HERE/queue"
echo "$id;cluster"
""",
    "squeue": """
[ -e "$HERE/down" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
job=$(grep -o 'jobs=[0-9]*' <<<"$*" | cut -d = -f 2)
line=$(grep "^$job " "$HERE/queue")
[ -n "$line" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
read -r id state reason <<<"$line"
echo "$id|$state|$reason|n[1-2]|2026-01-01T00:00:00|1:00"
""",
    "scontrol": """
case "$1" in
    show) for name in n1 n2; do echo $name; done;;
    --oneliner) echo "JobId=$4 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15";;
esac
""",
    "scancel": ":",
    "sinfo": 'printf "main*\\nlow\\n"',
}


class StandIns:
    """The folder of the programs, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "queue").touch()
        (folder / "calls").touch()
        for name, text in PROGRAMS.items():
            path = folder / name
            path.write_text(f'#!/bin/bash\nHERE={folder}\necho "{name} $*" >>"$HERE/calls"\n{text}')
            path.chmod(0o755)

    def queue(self, *lines: str) -> None:
        """Make these the jobs."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, program: str) -> list[str]:
        """Arguments of each call."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    found = StandIns(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(found.folder), prepend=":")
    return found
