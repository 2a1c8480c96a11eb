"""What the server tells about itself: a JSON line an event on stderr, and counters for Prometheus.

Neither holds anything that a client has sent but the method and whether the path is one of ours.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # upper ends of the histogram


def log(event: str, **fields: Any) -> None:
    """Write one line to stderr."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"time": time, "event": event, **fields}) + "\n")
    sys.stderr.flush()


class _Discreet(logging.Handler):
    """Says that a library has logged something, and where; not what, because that may be out of a patient's file."""

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[0] if record.exc_info else None
        where = f"{record.name}, {record.filename}:{record.lineno}"
        log("note", level=record.levelname, where=where, **({"type": raised.__name__} if raised else {}))


def be_discreet() -> None:
    """From now on no library's own words are logged, nor its warnings."""
    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in (*known, logging.root):
        logger.handlers.clear()
        logger.propagate = True
    logging.root.addHandler(_Discreet(logging.WARNING))
    logging.captureWarnings(True)


class Accounts:
    """Counts, and logs, every request."""

    def __init__(self, model_version: str, run_id: str, experiment_id: str) -> None:
        self.model_version = model_version
        self.identity = {"model_version": model_version, "run_id": run_id, "experiment_id": experiment_id}
        self.registry = CollectorRegistry()
        labels = ("method", "path", "status")
        self.requests = Counter("ultrasound_requests", "Requests answered", labels, registry=self.registry)
        self.images = Counter("ultrasound_images", "Images classified", registry=self.registry)
        self.seconds = Histogram(
            "ultrasound_request_seconds", "Seconds from the headers of a request for predictions to its answer",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.open = Gauge("ultrasound_requests_in_flight", "Requests not answered yet", registry=self.registry)
        self.waiting = Gauge("ultrasound_requests_waiting", "Requests that wait for a place", registry=self.registry)
        self.computing = Gauge("ultrasound_requests_computing", "Requests being computed", registry=self.registry)
        self.bytes = Gauge("ultrasound_bodies_bytes", "Bytes of request bodies held", registry=self.registry)
        model = Gauge("ultrasound_model", "The model that answers", ("model_version", "run_id"), registry=self.registry)
        model.labels(model_version, run_id).set(1)
        ProcessCollector(registry=self.registry)

    def close(self, method: str, path: str, status: int, seconds: float, rows: int) -> None:
        """Count and log a request that has been answered; status 499: the client left before."""
        self.requests.labels(method, path, str(status)).inc()
        if path == "/invocations":
            self.seconds.observe(seconds)
        if status == 200:
            self.images.inc(rows)
        log(
            "request", method=method, path=path, status=status, ms=round(seconds * 1000, 2), rows=rows,
            version=self.model_version,
        )  # fmt: skip

    def failure(self, kind: str) -> None:
        """Log what went wrong inside, by the name of its type: its text may hold what a client sent."""
        log("failure", type=kind, version=self.model_version)

    def text(self) -> bytes:
        """All counters in Prometheus's text format."""
        return generate_latest(self.registry)
