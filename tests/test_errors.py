import os
import signal
import time

import pytest

from ultrasound import errors


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in errors.SIGNALS}
    errors.raise_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    errors._stop = errors._Stop()


class Freed:
    """Is asked to end while it is freed, where Python drops what is raised."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", [errors.stop_if_asked, lambda: errors.signals_wait(False).__enter__()])
def test_a_stop_that_got_lost_is_raised_again_where_work_goes_on(handlers, work):
    work()
    Freed()
    with errors.signals_wait():  # what closes a run is not disturbed
        pass
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="stopped by Ctrl-C"):
            work()


def test_a_signal_raises_at_once_and_a_second_one_is_ignored(handlers):
    with pytest.raises(errors.Terminated, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_terminal_that_closes_ends_the_work_unless_that_was_to_be_ignored(handlers):
    with pytest.raises(errors.Terminated, match="stopped by SIGHUP") as stopped:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stopped.value.number == signal.SIGHUP
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    errors.raise_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_second_signal_after_a_while_does_not_wait(handlers, monkeypatch):
    monkeypatch.setattr(errors, "ECHO_SECONDS", 0.05)
    done = []

    def hang():
        with errors.signals_wait():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                done.append("asked")
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("hangs on")

    with pytest.raises(KeyboardInterrupt):
        hang()
    assert done == ["asked", "asked"]


def kill_in(what, number, done):
    """What is written to `done` after the signal, in a block that lets signals wait and one inside that does not."""
    with errors.signals_wait():
        if what == "the block":
            os.kill(os.getpid(), number)
        done.append("the block")
        with errors.signals_wait(False):
            if what == "the work":
                os.kill(os.getpid(), number)
            done.append("the work")
        if what == "the end":
            os.kill(os.getpid(), number)
        done.append("the end")


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("the block", ["the block"]),
        ("the work", ["the block"]),
        ("the end", ["the block", "the work", "the end"]),
    ],
)
def test_a_signal_waits_where_nothing_may_be_cut_short(handlers, what, expected):
    done = []
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        kill_in(what, signal.SIGINT, done)
    assert done == expected
    with errors.signals_wait():
        pass  # it has been raised once
