"""One view, which lends a book."""

from __future__ import annotations

import json

from django.db import IntegrityError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from everlog.errors import EventRefused
from library.facts import BookLent, loans
from library.models import Loan


@csrf_exempt
@require_POST
def lend(request: HttpRequest) -> HttpResponse:
    wish = json.loads(request.body)
    try:
        with transaction.atomic():
            loans.stage(connection, BookLent(wish["reader"], wish["book"]))
            Loan.objects.create(reader=wish["reader"], book=wish["book"])
    except EventRefused as error:
        return HttpResponse(str(error), status=422)
    except IntegrityError:
        return HttpResponse("the book is lent", status=409)
    return HttpResponse(status=201)
