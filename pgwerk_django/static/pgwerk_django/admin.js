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
