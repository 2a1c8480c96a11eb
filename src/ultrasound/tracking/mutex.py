"""One at a time, over processes and machines: what is decided about a study or a registry, under its database's lock.

The lock ends with the process that holds it: the system gives back a locked file, PostgreSQL the lock of a connection
that is gone, within a minute and a half where its machine has lost power or network.
"""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.pool import NullPool

from ultrasound.errors import InputError, ParameterError

KEEPALIVES = "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"


def _connected(engine: sqlalchemy.Engine, url: sqlalchemy.URL) -> sqlalchemy.Connection:
    try:
        return engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise InputError(f"the database {url.render_as_string()} does not answer: {reason}") from None


@contextmanager
def held(storage: str) -> Iterator[None]:
    """Hold the lock of a database until the block ends; waits for whoever holds it.

    Args:
        storage: SQLAlchemy address, of SQLite in a file or of PostgreSQL.

    Raises:
        ParameterError: it is of another kind.
        InputError: it does not answer.
    """
    url = sqlalchemy.make_url(storage)
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{url.database}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    elif url.get_backend_name() == "postgresql":
        try:
            engine = sqlalchemy.create_engine(
                url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"options": KEEPALIVES}
            )
        except ModuleNotFoundError as missing:
            raise ParameterError(
                f"the driver of {url.render_as_string()} is not here ({missing.name}): write postgresql://"
            ) from None
        with _connected(engine, url) as connection:
            key = zlib.crc32(b"ultrasound")  # of one database; others have locks of their own
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
            yield  # closing the connection gives the lock back
    else:
        raise ParameterError(
            f"{url.render_as_string()}: a study lives in SQLite (tune.storage: sqlite:///build/optuna.db) or in "
            "PostgreSQL (TUNE_STORAGE=postgresql://user:password@host/name)"
        )
