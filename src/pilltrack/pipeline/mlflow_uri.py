"""Where runs and models go, for those who look and must not load what sends them."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_URI = "sqlite:///mlflow.db"


def mlflow_uri(environment: Mapping[str, str]) -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the working directory.

    >>> mlflow_uri({"MLFLOW_TRACKING_URI": ""})
    'sqlite:///mlflow.db'
    """
    return environment.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
