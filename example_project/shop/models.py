from django.db import models
from django.db.models.functions import Now


class Product(models.Model):
    name = models.CharField(max_length=100, unique=True)
    supplier = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    class Status(models.TextChoices):
        PLACED = "placed"
        PAID = "paid"
        SHIPPED = "shipped"

    product = models.ForeignKey(Product, on_delete=models.CASCADE, related_name="orders")
    quantity = models.PositiveIntegerField(default=1)
    email = models.EmailField()
    status = models.CharField(max_length=10, choices=Status, default=Status.PLACED)
    notified = models.BooleanField(default=False, help_text="The customer knows that it was shipped.")
    placed_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product} for {self.email}"


class DailySales(models.Model):
    """What the morning report of one day says."""

    day = models.DateField(unique=True)
    orders = models.PositiveIntegerField()
    revenue = models.DecimalField(max_digits=12, decimal_places=2)

    class Meta:
        verbose_name_plural = "daily sales"

    def __str__(self) -> str:
        return f"{self.day}: {self.orders} orders, {self.revenue}"
