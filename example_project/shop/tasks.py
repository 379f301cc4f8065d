"""The shop's recurring work. A module named `tasks` or `schedules` in any installed app is found by itself."""

import asyncio
import logging
import random
from datetime import timedelta
from zoneinfo import ZoneInfo

from django.db import connection, transaction
from django.db.models import Count, F, Sum
from django.utils import timezone

from example_project.shop.models import DailySales, Order, Product
from pgwerk_django import Overlap, schedule
from pgwerk_django.jobs import current_job

log = logging.getLogger("shop")
PARIS = ZoneInfo("Europe/Paris")


class PaymentProviderDown(Exception):
    pass


@schedule(interval=5, _description="A visitor buys something, so that the other jobs have work.")
def place_order() -> str:
    visitor = f"visitor{random.randrange(1000)}@example.com"  # noqa: S311  not a secret
    with transaction.atomic():
        product = Product.objects.select_for_update().filter(stock__gt=0).order_by("?").first()
        if product is None:
            return "sold out"
        Product.objects.filter(pk=product.pk).update(stock=F("stock") - 1)
        order = Order.objects.create(product=product, email=visitor)
    log.info("order %s: %s", order.pk, order)
    return str(order)


@schedule(interval=15, _max_attempts=3, _backoff=[2, 10], _description="Fails at first, and succeeds when tried again.")
def charge_cards() -> int:
    job = current_job()
    if job and job.attempt == 1:
        raise PaymentProviderDown("503 Service Unavailable from payments.example.com")
    paid = Order.objects.filter(status=Order.Status.PLACED).update(status=Order.Status.PAID)
    log.info("charged %d cards", paid)
    return paid


@schedule(interval=10, args=["Colissimo"], kwargs={"at_most": 5})
def ship_orders(carrier: str, *, at_most: int) -> list[int]:
    waiting = Order.objects.filter(status=Order.Status.PAID).order_by("placed_at")
    shipped = list(waiting.values_list("pk", flat=True)[:at_most])
    Order.objects.filter(pk__in=shipped).update(status=Order.Status.SHIPPED)
    log.info("handed %d parcels to %s", len(shipped), carrier)
    return shipped


@schedule(interval=10, _timeout=30, _description="An async function: it tells all customers at once.")
async def notify_customers() -> int:
    shipped = Order.objects.filter(status=Order.Status.SHIPPED, notified=False)
    orders = [order async for order in shipped.select_related("product")]
    await asyncio.gather(*(send_mail(order) for order in orders))
    await Order.objects.filter(pk__in=[order.pk for order in orders]).aupdate(notified=True)
    return len(orders)


async def send_mail(order: Order) -> None:
    await asyncio.sleep(0.2)  # stands for the mail server
    log.info("told %s that %s is on its way", order.email, order.product)


@schedule(
    interval=5, _overlap=Overlap.SKIP, _description="Takes 8 s, due every 5: a run that is still going is not doubled."
)
def rebuild_search_index() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(8)")  # stands for a slow query
    return Product.objects.count()


@schedule(
    cron="0 9 * * *", _timezone="Europe/Paris", _queue="reports", _description="Yesterday's sales, at nine in Paris."
)
def daily_report() -> str:
    # The due time and not the clock: run late, it still reports the day that it was for.
    job = current_job()
    if job is None or job.due_at is None:
        return "run it as a job: manage.py schedules trigger example_project.shop.tasks.daily_report"
    day = job.due_at.astimezone(PARIS).date() - timedelta(days=1)
    with timezone.override(PARIS):
        sales = Order.objects.filter(placed_at__date=day).aggregate(
            orders=Count("pk"), revenue=Sum(F("quantity") * F("product__price"), default=0)
        )
    report, _ = DailySales.objects.update_or_create(day=day, defaults=sales)
    return str(report)


@schedule(cron="0 8 * * mon", _timezone="America/New_York", _queue="reports", _name="newsletter")
def send_newsletter() -> int:
    return Order.objects.values("email").distinct().count()


def restock(supplier: str, *, up_to: int) -> int:
    """Not declared here: a supplier's schedule is made at run time (see the command `seed_demo`)."""
    ordered = Product.objects.filter(supplier=supplier, stock__lt=up_to).update(stock=up_to)
    log.info("restocked %d products of %s", ordered, supplier)
    return ordered
