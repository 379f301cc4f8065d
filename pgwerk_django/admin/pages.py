"""What the three pages share: our database, PostgreSQL's clock, links that stay on the site, deletions that count."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import django
from django import forms
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import quote, unquote
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import url_params_from_lookup_dict
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import DataError, models
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.forms.widgets import Script
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext

from pgwerk_django import conf
from pgwerk_django.admin.display import EMPTY, json_text, shown_json
from pgwerk_django.masking import masked, masked_args

# Since Django 6.1 the block `object-tools` is in a row with the heading, and breadcrumbs are a list.
TOOLS_ARE_BESIDE_THE_HEADING = BREADCRUMBS_ARE_A_LIST = django.VERSION >= (6, 1)
MOST_LISTED = 100  # rows that a confirmation page names
# Lookups that a query string may use on an admitted column. No patterns: PostgreSQL raises an error for an invalid one.
LOOKUPS = ("exact", "in", "isnull", "gt", "gte", "lt", "lte")
OF_FILTERS = ("isempty", "id__exact")  # Django's filters of empty values and of related rows ask by these, too


class AtLeast(int):
    """A count that was broken off: there are more."""

    def __str__(self) -> str:
        return f"{int(self)}+"


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than people page: of a million rows it says "10000+"."""

    MOST = 10_000

    @functools.cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        found: int = rows.order_by()[: self.MOST + 1].count()
        return found if found <= self.MOST else AtLeast(self.MOST)


class LightList(ChangeList):
    """Leaves in the database what may be large, and of which a list shows a line at most."""

    model_admin: "Page"

    def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        return super().get_queryset(*args, **kwargs).defer(*self.model_admin.heavy)

    def get_results(self, request: HttpRequest) -> None:
        """Some values of a query string are refused only by PostgreSQL, such as a number that its column cannot hold."""
        try:
            super().get_results(request)
        except (DataError, OverflowError, ValueError) as error:
            raise IncorrectLookupParameters(error) from error


class RowForm(forms.ModelForm):  # type: ignore[type-arg]  # at run time Django's class takes no parameter
    """Of a row on our database: whether a name is taken is looked up there, and there it is saved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instance._state.db = self.instance._state.db or conf.current().DATABASE


class Page(admin.ModelAdmin):  # type: ignore[type-arg]  # at run time Django's class takes no parameter
    """Our database, PostgreSQL's clock on each row, and no count of everything."""

    heavy: tuple[str, ...] = ()  # columns that may be large
    askable: tuple[str, ...] = ()  # columns that the list's query string may name, beside those of its filters
    show_full_result_count = False
    view_on_site: Any = False
    form = RowForm
    empty_value_display = EMPTY

    class Media:
        css: ClassVar = {"all": ("pgwerk_django/admin.css",)}
        js: ClassVar = (Script("pgwerk_django/admin.js", defer=True),)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).using(conf.current().DATABASE).annotate(judged_at=Now())

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LightList

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:
        """Admit what the list's filters use, and comparisons of the columns in `askable`.

        Django admits every lookup on every column of the model: by `?kwargs__password__startswith=` a person who sees
        stars could spell out what is behind them.
        """
        if "\0" in value:  # which PostgreSQL's texts cannot hold
            return False
        return lookup in self._admitted_lookups(request) or self._is_limit_of_a_choice(lookup, value)

    def _admitted_lookups(self, request: Any) -> set[str]:
        admitted = {*self.askable, *(f"{column}__{lookup}" for column in self.askable for lookup in LOOKUPS)}
        for each in self.get_list_filter(request):
            if isinstance(each, type):
                admitted.add(getattr(each, "parameter_name", ""))
            else:
                column = each[0] if isinstance(each, list | tuple) else each
                admitted |= {f"{column}", *(f"{column}__{lookup}" for lookup in (*LOOKUPS, *OF_FILTERS))}
        return admitted

    def _is_limit_of_a_choice(self, lookup: str, value: str) -> bool:
        """Whether a foreign key to this model has it in `limit_choices_to`: the popup of such a field asks for it."""
        limits = (limit() if callable(limit) else limit for limit in self.model._meta.related_fkey_lookups)
        return any((lookup, value) in url_params_from_lookup_dict(limit).items() for limit in limits)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[Any, int], set[Any], list[Any]]:
        """What a deletion deletes: these rows alone, whose history stays. Counted and cut short, never collected."""
        lacking = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        listed = and_more([str(row) for row in objs[:MOST_LISTED]], len(objs))
        return listed, {self.opts.verbose_name_plural: len(objs)}, lacking, []

    # -- all of a value that the page cuts short

    whole: tuple[str, ...] = ()  # columns

    def get_urls(self) -> list[Any]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_value"
        view = self.admin_site.admin_view(self.value_view)
        return [path("<path:object_id>/value/<slug:column>/", view, name=name), *super().get_urls()]

    def value_view(self, request: HttpRequest, object_id: str, column: str) -> HttpResponse:
        row = self.get_object(request, unquote(object_id))
        if row is None or column not in self.whole:
            raise Http404
        if not self.has_view_or_change_permission(request, row):
            raise PermissionDenied
        value = getattr(row, column)
        if column == "args":
            value = masked_args(row.function, value)
        text = value if column == "error" else json_text(masked(value))  # the one that is no JSON
        return HttpResponse(
            text, content_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"}
        )

    def url(self, model: type[models.Model], view: str, *args: Any) -> str:
        """A page of this admin site; "" where it does not show that model."""
        if not self.admin_site.is_registered(model):
            return ""
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}"
        return reverse(name, args=[quote(arg) for arg in args], current_app=self.admin_site.name)

    def own_page(
        self,
        request: HttpRequest,
        *,
        title: Any,
        below: Sequence[tuple[str, Any]] = (),
        css: Sequence[str] = (),
        js: Sequence[Any] = (),
    ) -> dict[str, Any]:
        """The context of a page that is none of Django's: its title, its links to the pages above it, its style and scripts."""
        request.current_app = self.admin_site.name  # Django's own way to say it
        app = apps.get_app_config(self.opts.app_label)
        app_list = reverse("admin:app_list", args=[app.label], current_app=self.admin_site.name)
        return {
            **self.admin_site.each_context(request),
            "title": title,
            "subtitle": None,
            "opts": self.opts,
            "media": _with_nonce(forms.Media(css={"all": list(css)}) + self.media + forms.Media(js=list(js)), request),
            "breadcrumbs": [(app_list, app.verbose_name), *below],
            "breadcrumbs_are_a_list": BREADCRUMBS_ARE_A_LIST,
        }

    def link(self, text: Any, model: type[models.Model], pk: Any) -> Any:
        url = self.url(model, "change", pk)
        return format_html('<a href="{}">{}</a>', url, text) if url else text


class ReadOnlyPage(Page):
    """The machine's own rows: looked at, never written."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _with_nonce(media: forms.Media, request: HttpRequest) -> str:
    """Style and scripts as HTML, with the nonce of Django's Content-Security-Policy where the site has one.

    Django's own pages have nonces since Django 6.1.
    """
    if django.VERSION < (6, 1):
        return media.render()
    from django.middleware.csp import get_nonce

    nonce = get_nonce(request)
    return media.render(attrs=None if nonce is None else {"nonce": nonce})


def and_more(listed: list[str], count: int) -> list[str]:
    """The first of many, and how many are not named."""
    more = count - len(listed)
    return [*listed, gettext("and %(count)d more") % {"count": more}] if more else listed


def column(model: type[models.Model], name: str, shown: Callable[[Any], Any]) -> Callable[..., Any]:
    """A read-only column of the admin: the model's, under its own name, made presentable."""
    field: Any = model._meta.get_field(name)

    @admin.display(description=field.verbose_name, ordering=name)
    def presentable(self: Any, row: Any) -> Any:
        return shown(getattr(row, name))

    return presentable


def value_column(model: type[models.Model], name: str, shown: Callable[..., Any] = shown_json) -> Callable[..., Any]:
    """Like `column`, for what may be huge: cut short, with a link to all of it; with stars for what is secret."""
    field: Any = model._meta.get_field(name)

    @admin.display(description=field.verbose_name)
    def presentable(self: Any, row: Any) -> Any:
        value = getattr(row, name)
        if name == "args":
            value = masked_args(row.function, value)
        return shown(value, whole=f"../value/{name}/")

    return presentable
