"""The rows."""

from __future__ import annotations

from django.db import models


class Loan(models.Model):
    book: models.CharField[str, str] = models.CharField(max_length=200, unique=True)
    """A book that is lent is lent to one."""
    reader: models.CharField[str, str] = models.CharField(max_length=200)
