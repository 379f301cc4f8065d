"""What people type: the form of a schedule, and which functions they may name in it."""

import datetime as dt
import fnmatch
import functools
import inspect
import json
import re
import sys
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from django import forms
from django.contrib.admin.widgets import AdminTextInputWidget
from django.core.exceptions import ValidationError
from django.utils.html import format_html, format_html_join
from django.utils.module_loading import import_string
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from pgwerk_django import conf, registry, targets
from pgwerk_django.admin.pages import RowForm
from pgwerk_django.exceptions import text_of
from pgwerk_django.masking import has_stars, masked, masked_args, unmasked
from pgwerk_django.models import Schedule


def is_admitted(function: str) -> bool:
    """Whether people may name this function: code declares it, or `PGWERK["ALLOWED_FUNCTIONS"]` has a pattern for it."""
    patterns = conf.current().ALLOWED_FUNCTIONS
    return function in declared_functions() or any(fnmatch.fnmatchcase(function, pattern) for pattern in patterns)


def declared_functions() -> list[str]:
    return sorted({definition.function for definition in registry.registry})


MOST_SUGGESTED = 500


def admitted_functions() -> list[str]:
    """What may be suggested: declared functions, and those at home in modules that are loaded and that a pattern admits."""
    patterns = conf.current().ALLOWED_FUNCTIONS
    found = set(declared_functions())
    for name, module in sorted(sys.modules.items()) if patterns else ():
        if any(_may_hold(pattern, name) for pattern in patterns):
            own = [key for key, value in vars(module).items() if inspect.isroutine(value) and value.__module__ == name]
            found |= {f"{name}.{key}" for key in own if not key.startswith("_") and is_admitted(f"{name}.{key}")}
    return sorted(found)[:MOST_SUGGESTED]


def _may_hold(pattern: str, module: str) -> bool:
    """Whether the module's own functions may match: compared up to the pattern's first wildcard."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return f"{module}.".startswith(fixed) or fixed.startswith(f"{module}.")


@functools.cache
def zone_names() -> list[str]:
    return sorted(zoneinfo.available_timezones())


SUGGESTIONS: Mapping[str, Callable[[], Iterable[str]]] = {
    "function": admitted_functions,
    "timezone": zone_names,
    "target": lambda: sorted(targets.TARGETS),
}


class SuggestingInput(AdminTextInputWidget):
    """A text input that suggests values, by HTML alone."""

    def __init__(self, suggestions: Callable[[], Iterable[str]], attrs: dict[str, Any] | None = None) -> None:
        super().__init__(attrs)
        self.suggestions = suggestions

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        listed = f"{(attrs or {}).get('id', name)}_suggestions"
        field = super().render(name, value, {**(attrs or {}), "list": listed}, renderer)
        options = format_html_join("", '<option value="{}"></option>', ((each,) for each in self.suggestions()))
        return format_html('{}<datalist id="{}">{}</datalist>', field, listed, options)


class JSONField(forms.JSONField):
    """Django's, that also survives what Python's parser gives up on, and reads nothing as nothing."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except (ValueError, RecursionError):  # an integer of 5,000 digits, brackets 100,000 deep
            raise ValidationError(self.error_messages["invalid"], code="invalid") from None

    def bound_data(self, data: Any, initial: Any) -> Any:
        return initial if self.disabled else forms.fields.InvalidJSONInput(data or "")  # as it was typed

    def prepare_value(self, value: Any) -> Any:
        if value is None or isinstance(value, forms.fields.InvalidJSONInput):
            return value
        return json.dumps(value, indent=2 if isinstance(value, dict) else None, ensure_ascii=False)


class ScheduleForm(RowForm):
    """A schedule as a person writes it, judged by the readers of the API; what they refuse is said at its field."""

    class Meta:
        help_texts: ClassVar = {
            "name": _("Its identity: it cannot be changed later."),
            "function": _("One that code declares, or that a pattern in the setting ALLOWED_FUNCTIONS admits."),
            "args": _('A JSON list, such as ["Acme", 3].'),
            "kwargs": _('A JSON object, such as {"at_most": 5}.'),
            "cron": _("Such as 0 9 * * mon-fri. Give either this or an interval."),
            "interval": _("Seconds from one run to the next."),
            "timezone": _("The clocks by which the cron expression is read."),
            "next_run_at": _(
                "Optional; an interval then counts from here. Without cron and interval it runs this once. A time that has passed is run at once."
            ),
            "starts_at": _("No run before this."),
            "ends_at": _("No run after this."),
            "max_runs": _("It ends after so many runs."),
            "jitter": _("Seconds by which a run may be put off, to spread the load."),
            "priority": _("Jobs with a higher number go first."),
            "overlap": _("When an earlier job is not finished."),
            "misfire": _("When runs were missed."),
            "misfire_grace": _("Seconds after which a run counts as missed."),
            "backoff": _(
                "Seconds before another attempt: one number, or a JSON list with one for each. Empty: doubling."
            ),
            "target": _(
                "Who runs it; empty: a Django Task goes to its backend, a Celery task to Celery, the rest to the worker."
            ),
            "timeout": _("Seconds; empty: none."),
            "start_within": _("Seconds; what has not started by then is skipped. 0: until its next due time."),
            "result_ttl": _("Seconds for which a finished job is kept; empty: the setting RESULT_TTL."),
            "failure_ttl": _("Seconds for which a failed job is kept; empty: the setting FAILURE_TTL."),
        }
        labels: ClassVar = {"next_run_at": _("First run")}

    # Where these differ, the function has to be looked at again.
    CALL = frozenset({"function", "target", "args", "kwargs", *targets.DEMANDS, "overlap"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            if isinstance(field.widget, forms.MultiWidget):  # Django's label is for neither of the two inputs
                for widget, part in zip(field.widget.widgets, (_("date"), _("time")), strict=True):
                    widget.attrs["aria-label"] = f"{field.label}: {part}"
        if target := self.fields.get("target"):
            target.required = False
            target.initial = self.initial["target"] = self.instance.target if self.instance.pk else ""
        # What is secret goes out as stars, and stars that come back mean what they stood for. They stay stars until all is
        # judged, so that no message tells what is behind them.
        row = self.instance
        self._called = row.function, row.target
        self._secret = {"args": row.args, "kwargs": row.kwargs, "meta": row.meta} if row.pk else {}
        for column, value in self._secret.items():
            self.initial[column] = masked_args(row.function, value) if column == "args" else masked(value)

    def clean(self) -> dict[str, Any]:
        super().clean()
        for column in Schedule.DEFINITION:
            if column in self.cleaned_data:
                self._report(column, self._read, column)
        self._report("next_run_at", registry.instant, self.cleaned_data.get("next_run_at"), "next_run_at")
        self._check_name()
        self._check_recurrence()
        if self.CALL.intersection(self.changed_data):
            self._check_function()
        for column in self._secret:
            if has_stars(self.cleaned_data.get(column)):
                self._unmask(column)
        return self.cleaned_data

    def _unmask(self, column: str) -> None:
        """Put the values in place of their stars, for the function and the target that had them."""
        got = self.cleaned_data
        if (got.get("function", self._called[0]), got.get("target", self._called[1])) != self._called:
            words = _("The stars stand for a value of the former function or target: type the value itself.")
            self.add_error(column, words)
            return
        try:
            got[column] = unmasked(got[column], self._secret[column])
        except ValueError:
            self.add_error(column, _("There are stars that stand for no value: type the value itself."))

    def _report(self, field: str, check: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Run a check; what it refuses is `field`'s error."""
        try:
            check(*args, **options)
        except (TypeError, ValueError) as error:
            self.add_error(field, text_of(error))
            return False
        return True

    def _read(self, column: str) -> None:
        value = self.cleaned_data[column]
        if column == "function":
            registry.import_path(value)
        else:
            given = None if column in ("cron", "target") and not value else value
            self.cleaned_data.update(registry.read_options({column: given}))

    def _check_name(self) -> None:
        name = self.cleaned_data.get("name")
        if name in registry.registry:
            self.add_error("name", _("Code declares a schedule of this name."))

    def _check_recurrence(self) -> None:
        got = self.cleaned_data
        if not {"cron", "interval", "next_run_at"} & self.errors.keys():
            once = bool(got.get("next_run_at")) or self._is_one_off()
            rule = {column: got[column] for column in ("cron", "interval")}
            self._report("cron", registry.check_recurrence, rule, once=once)
        window = {"starts_at": got.get("starts_at"), "ends_at": got.get("ends_at")}
        if self._report("ends_at", registry.check_recurrence, window, once=True):
            self._check_first(got.get("next_run_at"), **window)

    def _is_one_off(self) -> bool:
        row = self.instance
        return row.pk is not None and not row.cron and row.interval is None

    def _check_first(
        self, first: dt.datetime | None, *, starts_at: dt.datetime | None, ends_at: dt.datetime | None
    ) -> None:
        if first and ((starts_at and first < starts_at) or (ends_at and first > ends_at)):
            self.add_error("next_run_at", _("The first run must be between “starts at” and “ends at”."))

    def _check_function(self) -> None:
        """It is admitted, its target can run it, and it takes these arguments."""
        function, target = self.cleaned_data.get("function"), self.cleaned_data.get("target")
        if function is None:
            return
        if not is_admitted(function):
            self.add_error("function", _not_admitted(function))
        elif target is not None and self._report("target", self._check_target, function, target):
            problems = list(targets.get(self.cleaned_data["target"]).function_problems(function))
            if problems:
                self.add_error("function", [ValidationError(problem) for problem in problems])
            elif not _is_here(function):  # Celery's workers may know what this process does not
                return
            elif self._report("function", _check_own_path, function) and not {"args", "kwargs"} & self.errors.keys():
                # What does not fit is told with its values: of secrets only the names count here.
                got = masked_args(function, self.cleaned_data["args"]), masked(self.cleaned_data["kwargs"])
                self._report("args", registry.check_arguments, import_string(function), *got)

    def _check_target(self, function: str, target: str) -> None:
        """It exists, or follows from the function; and it can do what is asked for."""
        known = {column: value for column, value in self.cleaned_data.items() if column in Schedule.DEFINITION}
        definition = registry.Definition(**{"name": "", **known, "function": function, "target": target})
        self.cleaned_data["target"] = self.instance.target = targets.resolved(definition).target
        problems = list(targets.get(self.cleaned_data["target"]).demand_problems(definition))
        if problems:
            raise ValueError(" ".join(problems))


def _not_admitted(function: str) -> ValidationError:
    return ValidationError(
        _(
            "%(function)s may not be scheduled here: code does not declare it, and no pattern of ALLOWED_FUNCTIONS admits it."
        ),
        params={"function": function},
    )


def _is_here(function: str) -> bool:
    try:
        import_string(function)
    except Exception:  # noqa: BLE001  # whatever its module raises
        return False
    return True


def _check_own_path(function: str) -> None:
    """A pattern such as `shop.*` admits the shop's functions, not what its modules happen to import."""
    own = registry.path_of(import_string(function))
    if own != function and not is_admitted(own):
        raise ValueError(
            gettext("%(function)s is really %(own)s, which is not allowed here.") % {"function": function, "own": own}
        )


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=_("Reason"),
        required=False,
        max_length=500,
        widget=AdminTextInputWidget(attrs={"autofocus": True}),
        help_text=_("Optional: it is on record, and those who find it paused will read it."),
    )


class CancelForm(ReasonForm):
    force = forms.BooleanField(
        label=_("Stop what runs"),
        required=False,
        help_text=_("Else a running job is asked, and stops if its function looks at that."),
    )
