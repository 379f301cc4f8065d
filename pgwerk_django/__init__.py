"""Recurring jobs for Django with nothing but PostgreSQL."""

from pgwerk_django.policies import Misfire, Overlap
from pgwerk_django.registry import schedule

__all__ = ["Misfire", "Overlap", "schedule"]
__version__ = "0.1.0"
