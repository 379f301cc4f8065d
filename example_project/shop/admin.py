from django.contrib import admin

from example_project.shop.models import DailySales, Order, Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ["name", "supplier", "price", "stock"]


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["id", "product", "quantity", "email", "status", "notified", "placed_at"]
    list_filter = ["status", "notified"]
    list_select_related = ["product"]


@admin.register(DailySales)
class DailySalesAdmin(admin.ModelAdmin):
    list_display = ["day", "orders", "revenue"]
