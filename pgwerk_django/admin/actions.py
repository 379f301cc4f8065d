"""What people do to rows, in the list and on a row's own page: asked, permitted, done under lock, told and recorded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import get_content_type_for_model
from django.contrib.auth import get_permission_codename
from django.core.exceptions import BadRequest, PermissionDenied, ValidationError
from django.db.models import Q
from django.forms.widgets import Script
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils import translation
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from pgwerk_django.admin.forms import ReasonForm
from pgwerk_django.admin.pages import MOST_LISTED, TOOLS_ARE_BESIDE_THE_HEADING, Page, and_more
from pgwerk_django.models import atomic


@dataclasses.dataclass(frozen=True)
class Action:
    """What a person does to rows: how it is asked, done, told and recorded."""

    name: str
    title: Any
    button: Any
    asks: bool  # on a page of its own, which a row's page, whose buttons ask already, passes over
    concerns: Q
    change: Callable[[Any, str, Mapping[str, Any]], int]  # of these rows, by whom, with what the form says
    question: Callable[[int], str]
    told: Callable[[int], str]
    log: Any
    log_with_reason: Any
    untouched: Any
    permission: str = ""  # its own name, where there is none
    form: type[forms.Form] = ReasonForm


class ActingPage(Page):
    """Performs its `acts`; of those that are not the person's to take, a POST is refused."""

    acts: ClassVar[tuple[Action, ...]] = ()
    known_by = "name"  # the column by which a person knows a row

    def may(self, request: HttpRequest, action: str) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.{get_permission_codename(action, self.opts)}")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Django passes over an action that is not the user's to take; whoever posts one should hear of it."""
        try:
            for pk in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME):
                self.opts.pk.to_python(pk)
        except ValidationError as error:
            raise BadRequest("that is no row's number") from error
        needed = {action.name: action.permission or action.name for action in self.acts}
        if not all(self.may(request, needed[name]) for name in request.POST.getlist("action") if name in needed):
            raise PermissionDenied
        return super().changelist_view(request, extra_context)

    def act(self, request: HttpRequest, queryset: Any, action: Action) -> HttpResponse | None:
        """Change what the action is for, under lock, with a log entry for each row that really changed; and say how many."""
        form = action.form(request.POST if request.POST.get("post") or not action.asks else None)
        if not form.is_valid():
            return self._confirm(request, queryset, action, form)
        reason = form.cleaned_data["reason"]
        with atomic(queryset.db):
            wanted = queryset.filter(action.concerns).order_by(self.known_by).only(self.known_by)
            found = list(wanted.select_for_update(no_key=True, of=("self",)))
            text = _log_text(action, reason)
            # Under the lock: of a double click the second request waits for the first, and finds its log entry.
            if found and _was_done(request, found, text):
                count, untouched = 0, _("That was done already, a moment ago.")
            else:
                rows = self.model._default_manager.using(queryset.db).filter(pk__in=[row.pk for row in found])
                by = request.user.get_username()[:200]
                count, untouched = action.change(rows, by, form.cleaned_data), action.untouched
                if found:
                    LogEntry.objects.log_actions(request.user.pk, found, CHANGE, text)  # type: ignore[arg-type]
        if count:
            self.message_user(request, action.told(count) % {"count": count}, messages.SUCCESS)
        else:
            self.message_user(request, untouched, messages.WARNING)
        return self._back_to_the_page(request)

    def action_context(self, row: Any) -> dict[str, Any]:
        """What the buttons on a row's page need (`admin/pgwerk_django/ask.html`)."""
        newest = audit_of(row).order_by("-pk").values_list("pk", flat=True).first()
        return {
            "action_url": self.url(self.model, "changelist"),
            "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "seen": newest or 0,
            "is_on_top": TOOLS_ARE_BESIDE_THE_HEADING,
        }

    def _back_to_the_page(self, request: HttpRequest) -> HttpResponse | None:
        """To the row's own page when its buttons were used; else Django goes to the list."""
        selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        if "_page" not in request.POST or len(selected) != 1:
            return None
        return HttpResponseRedirect(self.url(self.model, "change", selected[0]))

    def _confirm(self, request: HttpRequest, queryset: Any, action: Action, form: forms.Form) -> HttpResponse:
        across = request.POST.get("select_across", "0") == "1"
        count = queryset.count()
        names = list(queryset.order_by(self.known_by).values_list(self.known_by, flat=True)[:MOST_LISTED])
        # All of ten thousand are sent as "all", not by their numbers: a form may have only so many fields.
        selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        context = {
            **self.own_page(
                request,
                title=action.title,
                below=[(self.url(self.model, "changelist"), capfirst(self.opts.verbose_name_plural))],
                css=["admin/css/forms.css"],
                js=[Script("admin/js/cancel.js", **{"async": True})],
            ),
            "form": form,
            "action": action,
            "question": action.question(count) % {"count": count},
            "names": and_more(names, count),
            "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "selected": selected[:1] if across else selected,
            "select_across": int(across),
            "from_page": "_page" in request.POST,
            "seen": request.POST.get("seen", ""),
        }
        return TemplateResponse(request, "admin/pgwerk_django/action_confirmation.html", context)


def audit_of(row: Any) -> Any:
    return LogEntry.objects.filter(content_type=get_content_type_for_model(row), object_id=str(row.pk))


def _log_text(action: Action, reason: str) -> str:
    # A record that many people read is in the site's language, not in that of whoever clicked.
    with translation.override(settings.LANGUAGE_CODE):
        return str(action.log_with_reason) % {"reason": reason} if reason else str(action.log)


def _was_done(request: HttpRequest, found: Sequence[Any], text: str) -> bool:
    """Whether this person has done the same since the page was made that the request comes from."""
    seen = request.POST.get("seen", "")
    if not (len(found) == 1 and seen.isdecimal() and len(seen) < 19):
        return False
    since = audit_of(found[0]).filter(pk__gt=int(seen), user=request.user.pk, change_message=text)
    return bool(since.exists())
