"""Stands for a Python that prefork.py forks: `prefork_client.py SOCKET PYTHON ARGUMENTS`, ARGUMENTS as for `python`.

Run with `-I -S`, so that it starts in 20 ms; nothing but the standard library is there.
"""

import contextlib
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def request(arguments: list[str], python: str) -> dict[str, object] | None:
    """What the server is to run; None where it cannot."""
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":  # read once, by the server, when it loaded torch
        return None
    if arguments[:1] == ["--script"]:
        script, module, *rest = arguments[1:]
        return {"script": script, "module": module, "arguments": rest, "python": python}
    if arguments[:1] == ["-u"]:  # torchrun's; PYTHONUNBUFFERED does as much
        arguments = arguments[1:]
    if arguments[:1] == ["-m"]:
        return {"module": arguments[1], "arguments": arguments[2:], "python": python}
    return None


def main() -> None:
    """Ask, wait, and end as the other process did."""
    address, python, *arguments = sys.argv[1:]
    wanted = request(arguments, os.path.join(os.path.dirname(address), "python"))  # noqa: PTH118, PTH120
    if wanted is None:
        if arguments[:1] == ["--script"]:
            arguments = arguments[1:2] + arguments[3:]
        os.execv(python, [python, *arguments])
    child, early = 0, list[int]()

    def pass_on(number: int, _frame: object) -> None:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        else:
            early.append(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    message = {**wanted, "environment": dict(os.environ), "folder": os.getcwd(), "script_pid": os.getpid()}  # noqa: PTH109
    socket.send_fds(connection, [json.dumps(message).encode() + b"\n"], [0, 1, 2])
    reply = connection.makefile()
    child = int(reply.readline() or exit(97))  # empty where the server is gone
    for number in early:
        os.kill(child, number)
    code = int(reply.readline() or exit(97))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
