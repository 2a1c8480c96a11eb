"""Databases for studies: SQLite in a folder, and a real PostgreSQL server of its own where one is installed."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest


def binaries():
    """The folder of PostgreSQL's programs, the newest; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[4]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@contextlib.contextmanager
def postgresql(folder):
    """A server on loopback with a password; yields an address for SQLAlchemy."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here; CI installs it")
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    data = folder / "postgresql"
    data.mkdir(mode=0o700)
    if user:  # it refuses to run as root
        shutil.chown(data, "postgres", "postgres")
        for above in data.parents:
            if above.owner() == pwd.getpwuid(os.getuid()).pw_name and above != Path("/tmp") and above != Path("/"):
                above.chmod(above.stat().st_mode | 0o011)
    password = data.parent / "password"
    password.write_text("secret")
    password.chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command):
        subprocess.run(command, cwd=data, check=True, stdout=subprocess.DEVNULL, **user)

    run(programs / "initdb", "-D", data, "-U", "ultrasound", "-A", "scram-sha-256", f"--pwfile={password}", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
    run(programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", "-o", options, "start")
    try:
        yield f"postgresql://ultrasound:secret@127.0.0.1:{port}/postgres"
    finally:
        run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
