from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from example_project.shop.models import Product
from example_project.shop.tasks import restock
from pgwerk_django.scheduler import Scheduler

PRODUCTS = {
    "Teapot": ("Acme", "24.90"),
    "Teacup": ("Acme", "6.50"),
    "Kettle": ("Boilers & Sons", "39.00"),
    "Earl Grey, 100 g": ("Leaf Ltd", "7.80"),
    "Sencha, 100 g": ("Leaf Ltd", "11.20"),
}


class Command(BaseCommand):
    help = "Fill the shop for the demo. What is there already, and what you changed since, stays as it is."

    def handle(self, **options: Any) -> None:
        for name, (supplier, price) in PRODUCTS.items():
            Product.objects.get_or_create(name=name, defaults={"supplier": supplier, "price": price, "stock": 20})
        self.add_admin()
        self.add_schedules(Scheduler())

    def add_admin(self) -> None:
        users = get_user_model()._default_manager
        if not users.filter(username="admin").exists():
            users.create_superuser("admin", "admin@example.com", "admin")

    def add_schedules(self, scheduler: Scheduler) -> None:
        # A schedule made at run time is a row like any other, and survives restarts.
        if scheduler.get("restock.acme") is None:
            scheduler.interval(20, restock, "Acme", up_to=20, _name="restock.acme")
        # Declared schedules reach the table by a sync; a pause is the operator's, and outlives every later sync.
        is_new = scheduler.get("newsletter") is None
        scheduler.sync()
        if is_new:
            scheduler.pause("newsletter", reason="The texts are not ready yet", by="demo")
