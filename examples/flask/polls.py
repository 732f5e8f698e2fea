"""A Flask application that says what happened, and does nothing else with it.

The client is made here and opened in each worker, by `gunicorn_conf.py`: what was opened before a fork is of no use behind it.
"""

import msgspec
from flask import Flask, request

import everlog
from ballots import VoteCast
from everlog import App
from everlog.errors import EventRefused, LogError

client = everlog.blocking(App("polls"))
web = Flask(__name__)


@web.post("/votes")
def vote() -> tuple[dict[str, str], int]:
    try:
        cast = msgspec.json.decode(request.get_data(), type=VoteCast)
        client.publish(cast, idempotency_key=cast.vote)
    except (msgspec.MsgspecError, UnicodeDecodeError, EventRefused) as error:
        return {"error": str(error)}, 422
    except LogError as error:  # no room on the disk, no answer in time: whoever asked may ask again
        return {"error": str(error)}, 503
    return {"stored": cast.vote}, 202
