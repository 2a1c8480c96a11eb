"""Start the stock scoring server of MLflow, ask it, compare its answers with `evaluate`."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import mlflow
import numpy as np
import pandas as pd

from tests.conftest import environment


@contextlib.contextmanager
def serving(project, model, manager="local", **variables):
    """`mlflow models serve`, which may not read a pickle; yields the address to ask."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (project / "build/server.log").open("w") as log:
        process = subprocess.Popen(
            ["mlflow", "models", "serve", "-m", model, "--env-manager", manager, "-p", str(port)],
            cwd=project, env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", **variables), stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            for _ in range(900):  # an environment may have to be made first
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                assert process.poll() is None, (project / "build/server.log").read_text()
                time.sleep(1)
            else:
                raise AssertionError(f"the server did not come: {(project / 'build/server.log').read_text()}")
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def images(*contents):
    """A request with one row an image; bytes are base64-encoded, anything else is sent as it is."""
    rows = [[base64.b64encode(c).decode() if isinstance(c, bytes) else c] for c in contents]
    return {"dataframe_split": {"columns": ["image"], "data": rows}}


def ask(url, body):
    """Status and decoded answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def assert_served_as_evaluated(project, run_id, folder, url):
    """Every image of the test set: served probabilities = those of the evaluation of a run, to 1e-5.

    Returns:
        The table of the evaluation.
    """
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    of_model = f"tags.evaluated_model = '{client.get_run(run_id).data.tags['model_uri']}'"
    run = client.search_runs(["0"], f"tags.verb = 'evaluate' AND {of_model}", max_results=1)[0]
    table = pd.read_csv(client.download_artifacts(run.info.run_id, "tables/predictions_test.csv"))
    files = [(folder / f"{name}.png").read_bytes() for name in table["image_id"]]
    answers = []
    for start in range(0, len(files), 7):  # other batches than evaluate's
        status, answer = ask(url, images(*files[start : start + 7]))
        assert status == 200
        answers += answer["predictions"]
    served = pd.DataFrame(answers)
    columns = ["p_benign", "p_malignant", "p_normal"]
    np.testing.assert_allclose(served[columns].to_numpy(), table[columns].to_numpy(), atol=1e-5)
    assert served["label"].tolist() == table["predicted"].tolist()
    assert set(served["model_version"]) == {"breast-ultrasound/1"}
    assert "not a medical device" in served["notice"][0]
    digests = json.loads((project / "build/prepared/prepared.json").read_text())
    assert set(served["data_version"]) == {digests["data_digest"]}
    assert (served["malignant_flag"] == table["called_positive"]).all()
    assert [" ".join(chosen) for chosen in served["prediction_set"]] == table["prediction_set"].fillna("").tolist()
    assert served["abstain"][table["abstains"]].all()  # and of what is unlike the training images, too
    return table
