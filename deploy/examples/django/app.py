"""A Django project in one file; yours has `settings.py`, to which the lines below belong."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["example.com"],
    # Cloudflare overwrites X-Forwarded-Proto, and nobody comes around Cloudflare: the two conditions that Django's
    # documentation sets. Without it every request counts as plain HTTP, and SECURE_SSL_REDIRECT goes round for ever.
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
    SECURE_SSL_REDIRECT=True,
    SECURE_HSTS_SECONDS=3600,
    SESSION_COOKIE_SECURE=True,
    CSRF_COOKIE_SECURE=True,
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY") or os.urandom(32).hex(),
)


def visitor(request: HttpRequest) -> JsonResponse:
    """Say what is known of the visitor; behind the gate only the edge can have said CF-Connecting-IP."""
    return JsonResponse({"scheme": request.scheme, "address": request.headers["CF-Connecting-IP"]})


urlpatterns = [path("", visitor)]
application = get_wsgi_application()
