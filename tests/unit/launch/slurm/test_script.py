"""Text of the batch scripts, also checked by shellcheck. test_script_decisions.py runs them."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.slurm.cluster import Cluster, ContainerConfig, RequeueConfig
from launch.slurm.cluster_file import load_cluster
from launch.slurm.encode_jobs import encode_scripts
from launch.slurm.script import exports
from pretrain.errors import UserError
from tests.support.batch_job import render_job

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


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("run", [Path("/runs/a"), Path("/my runs/it's; rm -rf #1")], ids=["plain", "odd"])
def test_shellcheck_has_nothing_to_say(name: str, run: Path, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [render_job(CLUSTERS[name], run)]
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
    lines = render_job(CLUSTERS["example"]).splitlines()
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    assert lines[0] == "#!/bin/bash"


def test_what_a_site_wants_is_asked_for() -> None:
    found = directives(render_job(CLUSTERS["example"]))
    for option in """--account=nlp-pretrain --partition=gpu --qos=normal --constraint=h100&ib --exclusive --nodes=4
        --gres=gpu:h100:8
        --ntasks-per-node=8 --cpus-per-task=12 --hint=nomultithread --mem=0 --time=24:00:00 --signal=B:USR1@300 --requeue
        --mail-type=FAIL,REQUEUE --switches=1 --open-mode=append --output=/runs/a/logs/%x-%j.log --chdir=/runs""".split():
        assert option in found


def test_what_is_not_named_is_left_to_the_site() -> None:
    found = directives(render_job(Cluster()))
    assert {option.partition("=")[0] for option in found} == set(
        "--job-name --chdir --output --open-mode --nodes --ntasks-per-node --time --signal --requeue".split()
    )


def test_gpus_are_asked_for_by_node_unless_the_site_has_its_own_word() -> None:
    assert "--gpus-per-node=8" in directives(render_job(Cluster(gpus_per_node=8)))
    found = directives(render_job(Cluster(gpus_per_node=8, gres="gpu:h100:8")))
    assert "--gres=gpu:h100:8" in found and not any(option.startswith("--gpus") for option in found)


def test_an_agent_a_node_gets_the_cores_of_all_its_processes() -> None:
    found = directives(render_job(CLUSTERS["torchrun"]))
    assert "--ntasks-per-node=1" in found and "--cpus-per-task=12" in found


def test_no_requeue_is_said_to_slurm_too() -> None:
    found = directives(render_job(CLUSTERS["once"]))
    assert "--no-requeue" in found and "--export=NONE" in found


def test_torchrun_understands_the_command_of_an_agent(tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    script = render_job(dataclasses.replace(CLUSTERS["torchrun"], python="print-arguments"))
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
    assert arguments[:3] == ["-m", "launch.agent", "/runs/a/logs/torchrun-1.log"]
    options = get_args_parser().parse_args(arguments[3:])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "4", "n1:12000")
    assert (options.rdzv_backend, options.rdzv_id, options.rdzv_conf) == ("c10d", "7.0", "is_host=0")
    assert (options.max_restarts, options.module, options.training_script) == (0, True, "pretrain.train")
    assert options.training_script_args == ["my run.yaml"]


def test_containers_see_the_run_and_the_folder_of_submission() -> None:
    apptainer, pyxis = render_job(CLUSTERS["apptainer"]), render_job(CLUSTERS["pyxis"])
    assert (
        "container=(apptainer exec --nv --pwd=/runs --bind=/runs --bind=/runs/a --bind=/data:/data:ro --cleanenv "
        "'/images/a b.sif')" in apptainer
    )
    assert "train=(python3 -m pretrain.train" in apptainer  # not this machine's interpreter
    assert "'--container-image=nvcr.io#nvidia/pytorch:25.01-py3'" in pyxis
    assert "'--container-mounts=/runs:/runs,/runs/a:/runs/a,/data:/data' --container-workdir=/runs" in pyxis
    assert "container=()" in pyxis


def test_the_interpreter_is_the_one_that_submits() -> None:
    assert f"train=({sys.executable} -m pretrain.train" in render_job(Cluster())
    assert "train=('/my env/python' -m" in render_job(Cluster(python="/my env/python"))


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
