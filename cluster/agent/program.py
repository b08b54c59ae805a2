"""How a waiting process turns into the program that it was asked to run: a zygote's fork, or a spare process."""

import faulthandler
import logging
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Iterator

from cluster.agent.stacks import answer_with_stacks
from cluster.agent.wire import Fork, set_process_name
from schemas.exit_code import ExitCode

PROGRAMS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that mean something to a program and nothing to a process that waits: schedulers send them to every process of a job."""


def become(request: Fork) -> None:
    """Gives the calling process its own group, default signal handlers, its log and its folder. Signals should be blocked meanwhile."""
    os.setpgid(0, 0)
    for number in (signal.SIGCHLD, *PROGRAMS_SIGNALS):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(request.cwd)


def ended_children() -> Iterator[tuple[int, int]]:
    """Yields pid and exit status (negative: killed by that signal) of children that have ended, and takes them from the process table."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def run_program(request: Fork) -> None:
    """Runs the requested module as `__main__` in this process. An exception leaves its stack in the log, without our frames."""
    os.environ.update(request.env)
    set_process_name(request.name)
    for stream in (sys.stdout, sys.stderr):  # whole lines: processes that share a file do not tear each other's
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]  # a TextIOWrapper: nothing replaced it
    faulthandler.enable()
    answer_with_stacks()
    logging.getLogger().handlers.clear()
    sys.argv = [request.module, *request.argv]
    sys.modules.pop(request.module, None)  # a zygote may have imported it for what it imports; it runs as `__main__`
    try:
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    except Exception as error:  # noqa: BLE001  # outermost edge of the program
        stack = error.__traceback__
        while stack is not None and stack.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
            stack = stack.tb_next
        traceback.print_exception(type(error), error, stack)
        sys.exit(ExitCode.BUG)
