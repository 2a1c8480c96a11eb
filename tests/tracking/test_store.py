"""What may be said of a tracking store."""

import pytest

from ultrasound.tracking import store


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:pass%2Fword@db.example:5432/mlflow", "postgresql://db.example:5432/mlflow"),
        ("https://me:word@mlflow.example/team", "https://mlflow.example/team"),
        ("https://mlflow.example/team@lab", "https://mlflow.example/team@lab"),
        ("sqlite:////data/me@work/mlflow.db", "sqlite:////data/me@work/mlflow.db"),
    ],
)
def test_an_address_is_said_without_who_may_enter(address, said):
    assert store.bare(address) == said
