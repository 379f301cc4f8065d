"use strict";

// A form is sent once. The server would notice the second time; this saves people the question whether it did.
document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches(".pgwerk-ask form, .pgwerk-confirm")) return;
    if (form.dataset.sent) {
        event.preventDefault();
        return;
    }
    form.dataset.sent = "yes";
});

// Back in the history the page comes as it was left.
window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// Opening the question puts the cursor into it; Escape closes it.
document.addEventListener("toggle", (event) => {
    if (event.target.matches(".pgwerk-ask[open]")) event.target.querySelector("input[name=reason]").focus();
}, true);

document.addEventListener("keydown", (event) => {
    const open = event.key === "Escape" && event.target.closest(".pgwerk-ask[open]");
    if (open) {
        open.removeAttribute("open");
        open.querySelector("summary").focus();
    }
});

// The form of a schedule: what it would be, while one types.
document.addEventListener("DOMContentLoaded", () => {
    const preview = document.getElementById("pgwerk-preview");
    const form = preview && preview.closest("form");
    if (!form) return;
    const body = document.getElementById("pgwerk-preview-body");
    const names = /^(function|cron|interval|timezone|(starts_at|ends_at|next_run_at)_[01])$/;
    const rule = form.querySelector(".field-timezone");
    if (rule) rule.closest("fieldset").append(preview);
    let timer = null;
    let asked = null;

    async function ask() {
        if (asked) asked.abort();
        asked = new AbortController();
        const query = new URLSearchParams({row: preview.dataset.row});
        for (const [name, value] of new FormData(form)) if (names.test(name)) query.append(name, value);
        try {
            const response = await fetch(`${preview.dataset.url}?${query}`, {signal: asked.signal});
            if (!response.ok || response.redirected) return;
            const answer = await response.text();
            if (body.innerHTML !== answer) body.innerHTML = answer;
            preview.hidden = !answer.trim();
        } catch {
            // A newer question has taken its place, or the server is away: what is shown stays.
        }
    }

    form.addEventListener("input", (event) => {
        if (!names.test(event.target.name)) return;
        clearTimeout(timer);
        timer = setTimeout(ask, 250);
    });
    form.addEventListener("change", (event) => {
        if (names.test(event.target.name)) ask();
    });
    ask();
});
