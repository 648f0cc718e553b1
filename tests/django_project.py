"""A Django project in one file, run as `python django_project.py runserver`: the routes of `applications`."""

import sys

from django.conf import settings  # type: ignore[import-untyped]
from django.core.management import execute_from_command_line  # type: ignore[import-untyped]
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # type: ignore[import-untyped]
from django.urls import path  # type: ignore[import-untyped]

from applications import blocks, gated_events, summary

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    SECRET_KEY="for tests only",
)


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello\n", content_type="text/plain")


def digest(request: HttpRequest) -> HttpResponse:
    return HttpResponse(summary(iter(lambda: request.read(1 << 16), b"")), content_type="text/plain")


def stream(request: HttpRequest, size: int) -> StreamingHttpResponse:
    return StreamingHttpResponse(blocks(size), headers={"Content-Length": str(size)})


def events(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(gated_events(request.GET["gate"]), content_type="text/event-stream")


urlpatterns = [path("hello", hello), path("digest", digest), path("stream/<int:size>", stream), path("events", events)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
