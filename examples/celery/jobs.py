# Celery has no types of its own.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUntypedFunctionDecorator=false
"""Celery's side: tasks that do slow work and then say what they found. The broker is a folder, so that it runs without a server."""

from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

import everlog
from everlog import App
from everlog.errors import LogError
from imports import OrderImported

for folder in ("queue", "control"):
    Path(folder).mkdir(exist_ok=True)

celery = Celery("jobs", broker="filesystem://")
celery.conf.update(
    broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"},
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
)
client = everlog.blocking(App("erp"))


@worker_process_init.connect
def open_client(**_: Any) -> None:
    client.open()  # each of Celery's processes was forked, and opens its own


@worker_process_shutdown.connect
def close_client(**_: Any) -> None:
    client.close()


@celery.task(autoretry_for=(LogError,), retry_backoff=True, max_retries=20)
def import_order(customer: str, order: int) -> None:
    """Celery may run it twice, and whoever sent it may send it again: the key is the work's, and the event is stored once."""
    client.publish(OrderImported(customer, order), idempotency_key=f"order {order}")
