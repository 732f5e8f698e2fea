"""Where the view is."""

from django.urls import path

from library.views import lend

urlpatterns = [path("loans", lend)]
