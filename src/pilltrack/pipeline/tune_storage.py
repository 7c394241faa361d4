"""The database that holds the studies of `pilltrack tune`: a SQLite file, or PostgreSQL.

Optuna's tables are made on first use. Several processes may use one database: on SQLite each
transaction takes the file for itself and waits for its turn; on several machines it must be
PostgreSQL. A login is part of the URL, so nothing here prints a URL as it was given.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.pipeline.remote import without_login

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial
    from sqlalchemy.engine import URL

log = logging.getLogger(__name__)

STORAGE_VARIABLE = "PILLTRACK_TUNE_STORAGE"
DEFAULT_URL = "sqlite:///tune.db"
TLS = {"sslmode": "verify-full"}  # an option of PostgreSQL's URLs
HEARTBEAT_S, GRACE_S = 10, 60
SILENCE_TIMEOUT_S, LOCK_TIMEOUT_S = 30, 60
MAX_RETRIES = 2  # of a trial whose process died
MAX_STARTS = 5  # others may be making the tables at the same moment


def open_storage(url: str) -> RDBStorage:
    """Open the database, making the tables it lacks.

    Raises InputRejected for a URL of another kind, StageFailed when the database does not answer.
    """
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = _parsed(url)
    on_sqlite = known.get_backend_name() == "sqlite"
    connect: dict[str, Any] = (
        {"timeout": LOCK_TIMEOUT_S} if on_sqlite else {"timeout": SILENCE_TIMEOUT_S}
    )
    if dict(known.query) == TLS:
        known, connect["ssl_context"] = known.set(query={}), ssl.create_default_context()
    with speaking_to(url), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats may change in another version: it is pinned
        for start in range(1, MAX_STARTS + 1):
            try:
                storage = RDBStorage(
                    known.render_as_string(hide_password=False),
                    {"connect_args": connect, "pool_pre_ping": not on_sqlite},
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                    heartbeat_stale_trial_callback=queue_again,
                )
                break
            except ImportError as error:
                raise _failed(
                    url, str(error), "Run `pip install 'pilltrack[postgres]'`."
                ) from error
            except RuntimeError as error:  # tables of another version of Optuna
                raise _failed(url, str(error), "Use another database.") from error
            except SQLAlchemyError as error:
                beaten = any(words in str(error) for words in ("already exists", "duplicate key"))
                if start == MAX_STARTS or not beaten:
                    raise
                time.sleep(0.2 * start)
        if on_sqlite:
            _take_turns(storage)
    return storage


def queue_again(study: Study, trial: FrozenTrial) -> None:
    """Queue a trial whose process died, with the same values; after `MAX_RETRIES` no more."""
    again = trial.user_attrs.get("again", 0) + 1
    if again <= MAX_RETRIES:
        study.enqueue_trial(trial.params, user_attrs={"again": again})


class Heartbeat:
    """Says every `HEARTBEAT_S` that the process of a trial lives, while the block runs.

    A database that does not answer is asked again; whoever runs the trial will notice.
    """

    def __init__(self, storage: RDBStorage, trial: Trial) -> None:
        self._storage, self._trial = storage, trial
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        while True:
            try:
                self._storage.record_heartbeat(self._trial._trial_id)
            except (SQLAlchemyError, StorageInternalError) as error:
                log.debug("no heartbeat: %s", error)
            if self._ended.wait(HEARTBEAT_S):
                return


@contextmanager
def speaking_to(url: str) -> Iterator[None]:
    """Put what goes wrong between the block and the database into words, without the password."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        found = str(getattr(cause, "orig", None) or cause)
        remedy = "Check address, login and network; a password may stand in PGPASSWORD."
        raise _failed(url, found, remedy) from error


def _failed(url: str, found: str, remedy: str) -> StageFailed:
    secret = _parsed(url).password
    found = " ".join(found.split())[:400]
    return StageFailed(
        f"tune storage {shown(url)}",
        found=found.replace(str(secret), "***") if secret else found,
        expected="a database that this machine may write",
        remedy=remedy,
    )


def shown(url: str) -> str:
    """The URL without user, password and options.

    >>> shown("postgresql://me:secret@db.example.org/pills")
    'postgresql://db.example.org/pills'
    """
    return url if url.startswith("sqlite:") else without_login(url)


def _parsed(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        known = make_url(url)
        backend = known.drivername
    except (ArgumentError, ValueError):
        backend = ""
    if backend in ("postgres", "postgresql", "postgresql+pg8000"):
        if dict(known.query) not in ({}, TLS):
            raise InputRejected(
                f"the storage {shown(url)}",
                found=f"the options {', '.join(sorted(known.query))}",
                expected="none, or ?sslmode=verify-full",
                remedy="Correct --storage or PILLTRACK_TUNE_STORAGE.",
            )
        password = known.password or os.environ.get("PGPASSWORD")
        return known.set(drivername="postgresql+pg8000", password=password)
    if backend == "sqlite" and known.database and known.database != ":memory:":
        return known
    raise InputRejected(
        "the storage of the study",
        found=f"a URL of kind {backend!r}" if backend else "no URL of a database",
        expected="sqlite:///FILE or postgresql://USER@HOST/DATABASE",
        remedy="Correct --storage or PILLTRACK_TUNE_STORAGE.",
    )


def _take_turns(storage: RDBStorage) -> None:
    """Let each transaction lock the file at its beginning: what it reads stays true until its end.

    SQLite would otherwise refuse a second writer at once that has read before.
    """
    from sqlalchemy import event

    storage.engine.dispose()

    @event.listens_for(storage.engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def lock(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
