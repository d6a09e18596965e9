"""The batch script: its text held against shellcheck, and its decisions, run by bash with stand-ins for SLURM's commands.

A real SLURM runs it in tests/slurm.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.slurm.cluster import Cluster, ContainerConfig, RequeueConfig
from launch.slurm.cluster_file import load_cluster
from launch.slurm.encode_jobs import encode_scripts
from launch.slurm.script import Job, exports, render_train
from pretrain.errors import UserError

CLUSTERS = {
    "plain": Cluster(),
    "example": load_cluster("example"),
    "local": load_cluster("local"),
    "torchrun": Cluster(launcher="torchrun", nodes=2, gpus_per_node=4, cpus_per_task=3),
    "apptainer": Cluster(
        gpus_per_node=2,
        container=ContainerConfig("apptainer", "/images/a b.sif", ("/data:/data:ro",), ("--cleanenv",)),
        setup=("module load cuda",),
    ),
    "pyxis": Cluster(container=ContainerConfig("pyxis", "nvcr.io#nvidia/pytorch:25.01-py3", ("/data:/data",))),
    "once": Cluster(requeue=RequeueConfig(enabled=False), export="none", environment={"A": "it's $HOME", "B": 2}),
}


def render(cluster: Cluster, run: Path = Path("/runs/a")) -> str:
    return render_train(Job(run, run / "launch" / "job-001.yaml", run.parent, run.name), cluster)


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("run", [Path("/runs/a"), Path("/my runs/it's; rm -rf #1")], ids=["plain", "odd"])
def test_shellcheck_has_nothing_to_say(name: str, run: Path, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [render(CLUSTERS[name], run)]
    scripts += [
        script.text for script in encode_scripts(["--input", str(run)], CLUSTERS[name], tasks=3, records=tmp_path)
    ]
    for script in scripts:
        done = subprocess.run(
            ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout


def test_options_of_sbatch_come_before_all_commands() -> None:
    """sbatch stops to look for them at the first line that is no comment."""
    lines = render(CLUSTERS["example"]).splitlines()
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    assert lines[0] == "#!/bin/bash"


def test_what_a_site_wants_is_asked_for() -> None:
    found = directives(render(CLUSTERS["example"]))
    for option in """--account=nlp-pretrain --partition=gpu --qos=normal --constraint=h100&ib --exclusive --nodes=4
        --gres=gpu:h100:8
        --ntasks-per-node=8 --cpus-per-task=12 --hint=nomultithread --mem=0 --time=24:00:00 --signal=B:USR1@300 --requeue
        --mail-type=FAIL,REQUEUE --switches=1 --open-mode=append --output=/runs/a/logs/%x-%j.log --chdir=/runs""".split():
        assert option in found


def test_what_is_not_named_is_left_to_the_site() -> None:
    found = directives(render(Cluster()))
    assert {option.partition("=")[0] for option in found} == set(
        "--job-name --chdir --output --open-mode --nodes --ntasks-per-node --time --signal --requeue".split()
    )


def test_gpus_are_asked_for_by_node_unless_the_site_has_its_own_word() -> None:
    assert "--gpus-per-node=8" in directives(render(Cluster(gpus_per_node=8)))
    found = directives(render(Cluster(gpus_per_node=8, gres="gpu:h100:8")))
    assert "--gres=gpu:h100:8" in found and not any(option.startswith("--gpus") for option in found)


def test_an_agent_a_node_gets_the_cores_of_all_its_processes() -> None:
    found = directives(render(CLUSTERS["torchrun"]))
    assert "--ntasks-per-node=1" in found and "--cpus-per-task=12" in found


def test_no_requeue_is_said_to_slurm_too() -> None:
    found = directives(render(CLUSTERS["once"]))
    assert "--no-requeue" in found and "--export=NONE" in found


def test_torchrun_understands_the_command_of_an_agent(tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    script = render(dataclasses.replace(CLUSTERS["torchrun"], python="print-arguments"))
    environment = {
        "SLURM_NODEID": "1",
        "SLURM_NNODES": "2",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "12000",
        "SLURM_JOB_ID": "7",
    }
    match = re.search(r"sh -c '(.*)' task", script)
    assert match is not None
    shown = tmp_path / "print-arguments"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)
    command = ["sh", "-c", match[1].replace("'\"'\"'", "'"), "task", "pretrain.train", "my run.yaml"]
    done = subprocess.run(
        command,
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = done.stdout.splitlines()
    assert arguments[:2] == ["-m", "torch.distributed.run"]
    options = get_args_parser().parse_args(arguments[2:])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "4", "n1:12000")
    assert (options.rdzv_backend, options.rdzv_id, options.rdzv_conf) == ("c10d", "7.0", "is_host=0")
    assert (options.max_restarts, options.module, options.training_script) == (0, True, "pretrain.train")
    assert options.training_script_args == ["my run.yaml"]


def test_containers_see_the_run_and_the_folder_of_submission() -> None:
    apptainer, pyxis = render(CLUSTERS["apptainer"]), render(CLUSTERS["pyxis"])
    assert (
        "container=(apptainer exec --nv --pwd=/runs --bind=/runs --bind=/runs/a --bind=/data:/data:ro --cleanenv "
        "'/images/a b.sif')" in apptainer
    )
    assert "train=(python3 -m pretrain.train" in apptainer  # not this machine's interpreter
    assert "'--container-image=nvcr.io#nvidia/pytorch:25.01-py3'" in pyxis
    assert "'--container-mounts=/runs:/runs,/runs/a:/runs/a,/data:/data' --container-workdir=/runs" in pyxis
    assert "container=()" in pyxis


def test_the_interpreter_is_the_one_that_submits() -> None:
    assert f"train=({sys.executable} -m pretrain.train" in render(Cluster())
    assert "train=('/my env/python' -m" in render(Cluster(python="/my env/python"))


def test_an_interface_is_named_to_both_libraries_and_can_be_overridden() -> None:
    cluster = Cluster(network_interface="ib0", environment={"GLOO_SOCKET_IFNAME": "eth0"})
    assert list(exports(cluster)) == ["export NCCL_SOCKET_IFNAME=ib0", "export GLOO_SOCKET_IFNAME=eth0"]


@settings(max_examples=40)
@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_any_value_of_the_environment_arrives_as_it_is(value: str) -> None:
    line = "\n".join(exports(Cluster(environment={"VALUE": value})))
    done = subprocess.run(["bash", "-c", f'{line}\nprintf %s "$VALUE"'], capture_output=True, check=True, timeout=60)
    assert done.stdout == value.encode()


def test_an_array_encodes_and_the_others_do_not(tmp_path: Path) -> None:
    scripts = {
        script.step: script.text for script in encode_scripts(["--input", "a b"], Cluster(), tasks=4, records=tmp_path)
    }
    assert list(scripts) == ["plan", "tasks", "merge"]
    assert "tokenizer encode --input 'a b' --plan)" in scripts["plan"]
    assert "tokenizer encode --input 'a b')" in scripts["tasks"]
    assert "tokenizer encode --input 'a b' --merge)" in scripts["merge"]
    assert ["--array=0-3" in directives(text) for text in scripts.values()] == [False, True, False]
    assert 'command+=(--task-id "$SLURM_ARRAY_TASK_ID" --num-tasks 4)' in scripts["tasks"]


def test_encoding_asks_for_one_node_and_no_gpu(tmp_path: Path) -> None:
    found = directives(encode_scripts(["--input", "a"], CLUSTERS["example"], tasks=2, records=tmp_path)[1].text)
    assert "--nodes=1" in found and "--cpus-per-task=12" in found
    assert not any("gpu:" in option or "exclusive" in option for option in found)


@pytest.mark.parametrize("argument", ["--plan", "--task-id=3", "--merge"])
def test_arguments_of_the_launcher_are_refused(tmp_path: Path, argument: str) -> None:
    with pytest.raises(UserError, match="added by the launcher"):
        encode_scripts(["--input", "a", argument], Cluster(), tasks=2, records=tmp_path)


# --- decisions --------------------------------------------------------------------------------------------------------

STAND_INS = {
    # Runs the body of a test in place of the training; `begin` is what a trainer does when it has claimed the run.
    "srun": """
begin() { echo $(($(cat "$RUN/attempt" 2>/dev/null || echo 0) + 1)) >"$RUN/attempt"; echo running >"$RUN/status"; }
save() { mkdir -p "$RUN/checkpoints/step-$1"; }
echo "$@" >>"$RUN/srun.txt"
case "$*" in *node_check*) eval "$NODE_CHECK"; exit 0;; esac
eval "$BODY"
""",
    "squeue": 'case "$*" in *%e*) echo "$END";; *) echo "$STATE";; esac',
    "scontrol": """
echo "$@" >>"$RUN/scontrol.txt"
case "$1" in
    show) if [ "$2" = hostnames ]; then echo localhost; else echo "NodeAddr=127.0.0.1 X=y"; fi;;
esac
""",
}


class ScriptJob:
    """A job of number 77 in a folder of its own."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.run = folder / "my run"
        (self.run / "launch").mkdir(parents=True)
        self.commands = folder / "commands"
        self.commands.mkdir()
        for name, text in STAND_INS.items():
            path = self.commands / name
            path.write_text(f"#!/bin/bash\n{text}")
            path.chmod(0o755)
        self.script = self.run / "launch" / "job-001.sbatch"
        self.script.write_text(render(cluster, self.run))

    def begin(
        self, body: str, *, restart: int = 0, state: str = "RUNNING", **environment: str
    ) -> "subprocess.Popen[str]":
        """Start the script. `body` is what srun does."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        own |= {"RUN": str(self.run), "BODY": body, "STATE": state, "END": "N/A", "SLURM_JOB_ID": "77"}
        own |= {"SLURM_JOB_NODELIST": "n[1-2]", "PATH": f"{self.commands}:{os.environ['PATH']}", **environment}
        if restart:
            own["SLURM_RESTART_COUNT"] = str(restart)
        return subprocess.Popen(
            ["bash", str(self.script)], env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def go(self, body: str, **options: str | int) -> tuple[int, str]:
        """Run it to its end: exit code and output."""
        process = self.begin(body, **options)  # type: ignore[arg-type]
        shown, _ = process.communicate(timeout=120)
        return process.returncode, shown

    @property
    def requeued(self) -> bool:
        path = self.run / "scontrol.txt"
        return path.exists() and "requeue 77" in path.read_text()

    @property
    def last(self) -> list[str]:
        """What the history ends with."""
        return (self.run / "launch" / "history.tsv").read_text().splitlines()[-1].split("\t")[3:]


@pytest.fixture
def job(tmp_path: Path) -> ScriptJob:
    return ScriptJob(tmp_path, Cluster(nodes=2, signal_lead_s=30))


def test_a_run_that_is_done_ends(job: ScriptJob) -> None:
    code, shown = job.go('begin; save 00000010; echo done >"$RUN/status"')
    assert (code, job.requeued) == (0, False), shown
    assert job.last == ["end", "10", "all steps are done"]


def test_one_that_stopped_and_saved_requeues_itself(job: ScriptJob) -> None:
    code, shown = job.go('begin; save 00000010; echo unfinished >"$RUN/status"')
    assert (code, job.requeued) == (0, True), shown
    assert job.last == ["requeue", "10", "stopped and saved"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED", "UNKNOWN"])
def test_a_job_that_is_cancelled_or_preempted_is_not_brought_back(job: ScriptJob, state: str) -> None:
    code, _ = job.go('begin; save 00000010; echo unfinished >"$RUN/status"', state=state)
    assert (code, job.requeued) == (0, False)
    assert job.last == ["end", "10", f"the job is {state}"]


def test_a_failed_training_ends_with_the_code_of_the_process_that_failed_first(job: ScriptJob) -> None:
    message = 'echo "srun: error: n2: task 1: Exited with exit code 3" >&2; exit 143'
    code, _ = job.go(f'begin; save 00000010; echo failed >"$RUN/status"; {message}')
    assert (code, job.requeued) == (3, False)


@pytest.mark.parametrize("code", [1, 75, 137])
def test_a_crash_after_a_checkpoint_is_tried_again(job: ScriptJob, code: int) -> None:
    ended, shown = job.go(f"begin; save 00000010; exit {code}")
    assert (ended, job.requeued) == (0, True), shown
    assert job.last == ["requeue", "10", f"a process ended with {code}"]


def test_bad_input_is_not_tried_again(job: ScriptJob) -> None:
    message = 'echo "srun: error: n1: task 0: Exited with exit code 2" >&2; exit 137'
    assert job.go(message)[0] == 2
    assert not job.requeued


def test_a_start_that_never_began_does_not_believe_the_status_of_an_earlier_one(job: ScriptJob) -> None:
    (job.run / "status").write_text("done\n")
    (job.run / "attempt").write_text("4\n")
    _, shown = job.go("exit 1")
    assert job.requeued and "not begun" in shown


def test_starts_without_a_new_checkpoint_end_after_three(job: ScriptJob) -> None:
    outcomes = [job.go("begin; exit 75", restart=number)[0] for number in range(3)]
    assert outcomes == [0, 0, 1]
    assert (job.run / "scontrol.txt").read_text().count("requeue 77") == 2
    assert job.last[2].startswith("3 starts in a row without a new checkpoint")
    assert job.go("begin; save 00000010", restart=3)[0] == 1  # also where SLURM has requeued it
    assert not (job.run / "checkpoints").exists()


def test_a_checkpoint_among_failures_starts_the_count_again(job: ScriptJob) -> None:
    for number, body in enumerate(["exit 75", "exit 75", "save 00000010; exit 75", "exit 75", "exit 75"]):
        assert job.go(f"begin; {body}", restart=number)[0] == 0


def test_failures_of_another_job_do_not_count(job: ScriptJob) -> None:
    line = "1\t76\t0\tstart\t0\tnodes n1\n"
    (job.run / "launch" / "history.tsv").write_text(line * 5)
    assert job.go("begin; exit 75")[0] == 0
    assert job.requeued


def test_restarts_have_a_limit(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, Cluster(requeue=RequeueConfig(max_restarts=2)))
    body = 'begin; save 000000$SLURM_RESTART_COUNT; echo unfinished >"$RUN/status"'
    assert job.go(body, restart=2)[0] == 1
    assert not job.requeued and "max_restarts=2" in job.last[2]


def test_a_job_that_may_not_requeue_ends_with_the_code(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, Cluster(requeue=RequeueConfig(enabled=False)))
    assert job.go("begin; save 00000010; exit 75")[0] == 75
    assert not job.requeued


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_becomes_the_stop_file_for_as_long_as_the_training_lives(job: ScriptJob, signal: str) -> None:
    """A first stop file is taken away, as a start takes one that is older than itself."""
    wait = 'while [ ! -e "$RUN/stop" ]; do sleep 0.1; done'
    process = job.begin(
        f'begin; touch "$RUN/ready"; {wait}; rm "$RUN/stop"; {wait}; cat "$RUN/stop" >"$RUN/asked"; rm "$RUN/stop"; '
        'save 00000010; echo unfinished >"$RUN/status"'
    )
    while not (job.run / "ready").exists():
        time.sleep(0.05)
    subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
    shown, _ = process.communicate(timeout=120)
    assert (job.run / "asked").read_text() == f"{signal}\n", shown
    assert job.last == ["requeue", "10", f"stopped by {signal} and saved"]
    assert not (job.run / "stop").exists()


def test_a_stop_file_of_a_person_ends_the_run_for_good(job: ScriptJob) -> None:
    code, _ = job.go('begin; touch "$RUN/stop"; sleep 3; rm "$RUN/stop"; save 00000010; echo unfinished >"$RUN/status"')
    assert (code, job.requeued) == (0, False)
    assert job.last[2].endswith("/stop")


def test_pretrain_stop_ends_the_run_for_good(job: ScriptJob) -> None:
    code, _ = job.go('begin; touch "$RUN/launch/stopped"; save 00000010; echo unfinished >"$RUN/status"')
    assert (code, job.requeued) == (0, False)
    assert job.last == ["end", "10", "stopped by `pretrain stop`"]


def test_a_job_that_was_stopped_in_the_queue_does_not_begin(job: ScriptJob) -> None:
    (job.run / "launch" / "stopped").touch()
    assert job.go('begin; touch "$RUN/began"', restart=1)[0] == 0
    assert not (job.run / "began").exists()


def test_a_stop_file_of_an_earlier_start_is_taken_away(job: ScriptJob) -> None:
    (job.run / "stop").touch()
    job.go('[ ! -e "$RUN/stop" ] && begin && save 00000010 && echo done >"$RUN/status"')
    assert job.last[2] == "all steps are done"


def test_a_save_that_takes_too_long_does_not_end_the_run(job: ScriptJob) -> None:
    process = job.begin('begin; touch "$RUN/ready"; exec sleep 100', SLURM_JOB_END_TIME=str(int(time.time()) + 17))
    while not (job.run / "ready").exists():
        time.sleep(0.05)
    subprocess.run(["kill", "-USR1", str(process.pid)], check=True)
    try:
        assert process.wait(60) == 0
    finally:
        assert process.stdout is not None
        process.stdout.close()
        subprocess.run(["pkill", "-P", str(process.pid)], check=False)
    assert job.requeued and "signal_lead_s is too short" in job.last[2]


def test_a_bad_node_is_avoided_by_the_next_start(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, Cluster(node_check=True, exclude="n9"))
    check = 'printf "n2\\nn3\\n" >"$RUN/launch/exclude"; exit 75'
    assert job.go('begin; touch "$RUN/began"', NODE_CHECK=check)[0] == 0
    assert job.requeued and not (job.run / "began").exists()
    assert "update JobId=77 ExcNodeList=n9,n2,n3" in (job.run / "scontrol.txt").read_text()


def test_a_node_check_that_fails_ends_the_job(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, Cluster(node_check=True))
    assert job.go('begin; touch "$RUN/began"', NODE_CHECK="exit 1")[0] == 1
    assert not job.requeued and not (job.run / "began").exists()


def test_processes_get_their_place_and_their_meeting_point(job: ScriptJob) -> None:
    shown = '"$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"'
    # The stand-in of srun runs the command from `sh` on, as one task would.
    body = (
        f'begin; while [ "$1" != sh ]; do shift; done; set -- "${{@:1:4}}" sh -c \'echo {shown}\'; "$@" >"$RUN/place"'
    )
    task = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    job.go(body, **task)
    assert (job.run / "place").read_text().split() == ["5", "8", "1", "1", "localhost", "10077"]
    (job.run / "srun.txt").unlink()
    job.go(body, restart=2, **task)
    assert (job.run / "place").read_text().split()[-1] == "10271"  # not that of a start that may still live
    assert "--kill-on-bad-exit=1 --wait=60" in (job.run / "srun.txt").read_text()
    assert f"--output={job.run}/logs/77-2/rank-%4t.log" in (job.run / "srun.txt").read_text()


def test_the_deadline_is_asked_for_where_slurm_does_not_tell(job: ScriptJob) -> None:
    body = 'begin; echo "$SLURM_JOB_END_TIME" >"$RUN/end"'
    job.go(body, END="2030-01-02T03:04:05", TZ="UTC")
    assert (job.run / "end").read_text() == "1893553445\n"
    job.go(body, END="N/A")
    assert (job.run / "end").read_text() == "\n"
    job.go(body, END="2030-01-02T03:04:05", SLURM_JOB_END_TIME="123")
    assert (job.run / "end").read_text() == "123\n"


def test_a_line_of_setup_that_fails_ends_the_job(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, Cluster(setup=("export A=1", "false A", "touch began")))
    code, shown = job.go('begin; touch "$RUN/began"')
    assert code == 1 and "setup failed: false A" in shown
    assert not (job.run / "began").exists()


def test_setup_may_use_variables_that_are_not_set(tmp_path: Path) -> None:
    job = ScriptJob(tmp_path, Cluster(setup=('export A="$NEVER_SET.x"',)))
    job.go('begin; echo "$A" >"$RUN/a"')
    assert (job.run / "a").read_text() == ".x\n"
