import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.slurm.cluster import Cluster, ContainerConfig
from launch.slurm.cluster_file import find_file, load_cluster, resize, split_overrides
from launch.slurm.cluster_rules import parse_time, quote_directive, unsafe_path
from launch.slurm.submit import cluster_text
from pretrain.config.build import known_keys
from pretrain.errors import ConfigError, UserError
from tests.support.repository import ROOT

CONFIGS = ROOT / "configs" / "cluster"


def write(folder: Path, text: str) -> str:
    path = folder / "site.yaml"
    path.write_text(text)
    return str(path)


def load(folder: Path, text: str, *overrides: str) -> Cluster:
    return load_cluster(write(folder, text), overrides)


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return caught.value.problems


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_valid_and_found_by_name(path: Path) -> None:
    assert load_cluster(path.stem) == load_cluster(str(path))


def test_the_example_has_every_key() -> None:
    def names(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            section = isinstance(value, dict) and key in ("requeue", "container")
            found |= names(value, f"{prefix}{key}.") if section else {f"{prefix}{key}"}
        return found

    assert names(yaml.safe_load((CONFIGS / "example.yaml").read_text())) == set(known_keys(Cluster))


def test_file_then_parent_then_command_line(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text('{account: a, partition: p, time: "2:00:00"}')
    cluster = load(tmp_path, "extends: parent.yaml\npartition: q", "account=b", "requeue.max_restarts=4", "nodes=3")
    assert (cluster.account, cluster.partition, cluster.time, cluster.nodes) == ("b", "q", "2:00:00", 3)
    assert cluster.requeue.max_restarts == 4


def test_a_name_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(UserError, match="neither a file nor a name") as caught:
        find_file("exmaple")
    assert "example" in str(caught.value.hint)


def test_what_is_saved_is_read_back_equal(tmp_path: Path) -> None:
    cluster = load_cluster("example")
    assert load(tmp_path, cluster_text(cluster)) == cluster


def test_overrides_of_the_cluster_are_told_from_those_of_the_run() -> None:
    assert split_overrides(["run.seed=1", "cluster.nodes=2", "cluster.requeue.enabled=false"]) == (
        ["run.seed=1"],
        ["nodes=2", "requeue.enabled=false"],
    )


def test_nodes_of_the_command_line_come_first() -> None:
    assert resize(Cluster(nodes=2), 5).nodes == 5
    assert resize(Cluster(nodes=2), None).nodes == 2


# --- single values ----------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_with_near_names(tmp_path: Path) -> None:
    text = (
        "{partion: gpu, nodes: 0, launcher: sruun, container: {kind: docker}, requeue: {max_restart: 1}, setup: module}"
    )
    problems = problems_of(tmp_path, text)
    assert len(problems) == 6
    found = "\n".join(problems)
    for hint in ("did you mean partition?", "did you mean srun?", "did you mean requeue.max_restarts?"):
        assert hint in found
    assert "setup='module' is not a list of strings" in found


def test_a_key_that_is_near_to_nothing_leads_to_the_example(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "zzz: 1")
    assert "configs/cluster/example.yaml" in problem


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1:30:00", 5400),
        ("24:00:00", 86_400),
        ("100:00:00", 360_000),
        ("0:00:01", 1),
        ("1-0", 86_400),
        ("2-03", 183_600),
        ("2-03:04", 183_840),
        ("2-03:04:05", 183_845),
    ],
)
def test_a_time_limit_in_seconds(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "2:00", "1:60:00", "1:00:60", "1-24", "1-00:60", "-1:00:00", "1:00:00\n", "1h", "UNLIMITED"]
)
def test_what_is_no_time_limit_or_means_something_else_to_slurm(text: str) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize(("text", "key"), [("time: 24:00:00", "time"), ("time: 90", "time"), ("mem: 0", "mem")])
def test_a_value_that_yaml_took_for_a_number_asks_for_quotes(tmp_path: Path, text: str, key: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(f"{key}=") and "quote it" in problem


def test_a_time_on_the_command_line_needs_no_quotes(tmp_path: Path) -> None:
    assert load(tmp_path, "nodes: 1", "time=24:00:00").time == "24:00:00"


INJECTIONS = ["a\nb", 'a"b', "a'b", "a\\b", "a`b", "a\tb", " a", "a ", "", "a\x00b", "a\x7fb"]


@pytest.mark.parametrize("value", INJECTIONS)
@pytest.mark.parametrize(
    "key", "account partition qos constraint reservation nodelist exclude gres hint job_name comment mail_user".split()
)
def test_a_value_cannot_end_its_line_or_its_quotes(tmp_path: Path, key: str, value: str) -> None:
    tree = {key: value} | ({"mail_type": "END"} if key == "mail_user" else {})
    problems = problems_of(tmp_path, yaml.safe_dump(tree))
    assert any(problem.startswith(f"{key}=") for problem in problems)


@pytest.mark.parametrize("value", ["a b", "a;b", "a$b", "a#b"])
def test_names_have_no_spaces_or_signs_of_a_shell(tmp_path: Path, value: str) -> None:
    assert problems_of(tmp_path, yaml.safe_dump({"account": value}))


def test_a_comment_may_have_spaces_and_hashes() -> None:
    assert quote_directive("run 3 # of 4; $HOME") == '"run 3 # of 4; $HOME"'
    assert quote_directive("h100&ib|[a*2]") == "h100&ib|[a*2]"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"extra": ["#SBATCH --x"]}, "not a single sbatch option"),
        ({"extra": ["--a\n#SBATCH --b"]}, "not a single sbatch option"),
        ({"srun": ["--mpi=none", "rm"]}, "is not an option"),
        ({"environment": {"A-B": "1"}}, "not a valid variable name"),
        ({"environment": {"A": True}}, "not a string or number"),
        ({"environment": {"RANK": 1}}, "set by the job"),
        ({"network_interface": "ib0\nrm"}, "newline"),
        ({"mail_user": "me"}, "must be set together"),
        ({"log": "../x.log"}, "plain file name"),
        ({"mem": "lots"}, "not a size"),
        ({"time": "0:02:00", "signal_lead_s": 120}, "would only save"),
        ({"gres": "gpu:4", "gpus_per_node": 8}, "does not match gpus_per_node=8"),
        ({"gres": "gpu:h100:4"}, "gpus_per_node: 4"),
        ({"gpus_per_node": 2, "tasks_per_node": 4}, "share GPUs"),
        ({"container": {"image": "x.sif"}}, "have no effect"),
        ({"container": {"kind": "pyxis"}}, "is not an image"),
        ({"container": {"kind": "apptainer", "image": "x", "mounts": ["/a"]}}, "not HOST:CONTAINER"),
        ({"container": {"kind": "apptainer", "image": "x", "mounts": ["/a:/b,/c:/d"]}}, "not HOST:CONTAINER"),
        ({"container": {"kind": "apptainer", "image": "x", "arguments": ["x\ny"]}}, "is not an option"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_rules_between_values(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    (problem,) = problems_of(tmp_path, yaml.safe_dump(change))
    assert part in problem


@given(st.text())
def test_a_path_for_sbatch_is_safe_or_refused(text: str) -> None:
    assert unsafe_path(text) or not re.search(r"[\n\r%\"'\\`]", text)


@pytest.mark.parametrize(
    ("cluster", "ranks"),
    [
        (Cluster(), 1),
        (Cluster(gpus_per_node=8), 8),
        (Cluster(gpus_per_node=8, tasks_per_node=4), 4),
        (Cluster(tasks_per_node=3), 3),
    ],
)
def test_processes_of_a_node(cluster: Cluster, ranks: int) -> None:
    assert cluster.processes_per_node == ranks


def test_every_string_of_a_directive_is_checked() -> None:
    """A new key of a `#SBATCH` line must not be forgotten by the rules."""
    from launch.slurm.script import directives

    strings = [
        field.name
        for field in dataclasses.fields(Cluster)
        if "str" in str(field.type) and "tuple" not in str(field.type)
    ]
    marked = dataclasses.replace(
        Cluster(),
        **{name: f"x{name}x" for name in strings if name not in ("launcher", "export")},
        container=ContainerConfig(),
    )
    from launch.slurm.cluster_rules import DIRECTIVES

    written = "\n".join(directives(marked))
    assert {name for name in strings if f"x{name}x" in written} <= set(DIRECTIVES)
