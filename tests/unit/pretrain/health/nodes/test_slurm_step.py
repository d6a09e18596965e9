import pytest

from pretrain.errors import UserError
from pretrain.health.nodes.slurm_step import SlurmStep, expand_nodelist, read_slurm_step

STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}


def test_the_place_is_that_of_the_step() -> None:
    place = read_slurm_step({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "SLURM_RESTART_COUNT": "2"})
    assert place == SlurmStep(("n1", "n2"), 1, "10.0.0.1", 1234, "7-2")
    assert place.node == "n2"
    assert read_slurm_step(STEP).head == "n1"


def test_several_tasks_a_node_are_refused() -> None:
    with pytest.raises(UserError, match="4 tasks were started on 2 nodes"):
        read_slurm_step({**STEP, "SLURM_STEP_NUM_TASKS": "4"})


def test_outside_a_step_it_is_refused() -> None:
    with pytest.raises(UserError, match="a step of a SLURM job"):
        read_slurm_step({"SLURM_JOB_ID": "7"})


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n1", "n1"),
        ("n1,gpu-07.site", "n1 gpu-07.site"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[098-101,7]", "n098 n099 n100 n101 n7"),
        ("a[1-2,07]b,c", "a1b a2b a07b c"),
        ("rack[1-2]node[3,5]", "rack1node3 rack1node5 rack2node3 rack2node5"),
    ],
)
def test_names_are_those_that_scontrol_would_show(short: str, names: str) -> None:
    assert list(expand_nodelist(short)) == names.split()


@pytest.mark.parametrize("text", ["", "n[1-2", "n]", "n[a-b]", "n[]", "[[1]]"])
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a node list"):
        list(expand_nodelist(text))
