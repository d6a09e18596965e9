"""The cables of the test cluster: a network namespace a node, and a switch between them. Needs root."""

import os
import subprocess

from tests.support.slurm_config import Layout

SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Network:
    """That of one cluster; its names begin with the cluster's prefix."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def namespace(self, node: str) -> str:
        """The name by which `ip netns` knows a node."""
        return f"{self.layout.prefix}-{node}"

    def make(self) -> None:
        """A switch in a namespace of its own, where no rule of the host's firewall applies; a cable to each node."""
        layout, switch = self.layout, self.namespace("switch")
        commands = f"""
            netns add {switch}
            -n {switch} link add bridge type bridge
            -n {switch} link set bridge up
            link add {layout.prefix}-ctl type veth peer name ctl netns {switch}
            -n {switch} link set ctl master bridge up
            addr add {layout.controller}/24 dev {layout.prefix}-ctl
            link set {layout.prefix}-ctl up
        """
        for node in layout.names:
            own = self.namespace(node)
            commands += f"""
                netns add {own}
                -n {own} link set lo up
                -n {switch} link add {node} type veth peer name eth0 netns {own}
                -n {switch} link set {node} master bridge up
                -n {own} addr add {layout.address(node)}/24 dev eth0
                -n {own} link set eth0 up
            """
        for line in commands.splitlines():
            if line.strip():
                _ip(line.strip())

    def remove(self) -> None:
        """Everything, also what a cluster left that was killed."""
        for name in ("switch", *self.layout.names):
            _ip(f"netns del {self.namespace(name)}", check=False)
        _ip(f"link del {self.layout.prefix}-ctl", check=False)

    def pull(self, node: str) -> None:
        """The cable out of the switch."""
        self._switch(f"link set {node} down")

    def plug(self, node: str) -> None:
        """And back."""
        self._switch(f"link set {node} up")

    def _switch(self, command: str) -> None:
        if self.layout.isolated:
            _ip(f"-n {self.namespace('switch')} {command}")


def _ip(command: str, *, check: bool = True) -> None:
    done = subprocess.run(["ip", *command.split()], env={"PATH": SEARCH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {command}: {done.stderr}"
