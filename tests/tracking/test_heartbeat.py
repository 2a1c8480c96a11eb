import time

import psutil

from ultrasound.tracking import heartbeat


def tags(**changed):
    machine, pid, created = heartbeat.marks()[heartbeat.PROCESS_TAG].split(" ")
    parts = {"machine": machine, "pid": pid, "created": created, "beat": time.time()} | changed
    process = f"{parts['machine']} {parts['pid']} {parts['created']}"
    return {heartbeat.PROCESS_TAG: process, heartbeat.BEAT_TAG: f"{parts['beat']:.0f}"}


def test_this_process_is_alive_and_one_that_has_ended_is_not():
    assert heartbeat.is_alive(heartbeat.marks())
    free = next(pid for pid in range(40_000, 4_000_000) if not psutil.pid_exists(pid))
    assert not heartbeat.is_alive(tags(pid=free))
    assert not heartbeat.is_alive({})


def test_a_number_that_another_process_has_now_is_no_life():
    assert not heartbeat.is_alive(tags(created=1000.0, beat=time.time() - 1000))
    assert heartbeat.is_alive(tags(created=1000.0))  # a clock that was set


def test_a_process_of_another_machine_lives_as_long_as_it_is_heard_of():
    assert heartbeat.is_alive(tags(machine="elsewhere"))
    assert heartbeat.is_alive(tags(machine="elsewhere", beat=time.time() - 300))
    assert not heartbeat.is_alive(tags(machine="elsewhere", beat=time.time() - 700))
