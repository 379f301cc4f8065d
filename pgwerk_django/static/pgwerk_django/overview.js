"use strict";

// Looks again by itself: a part of the page is put in place of the old one only where it differs, so that scroll, focus and
// selection stay where they are. A hidden tab asks nothing, and looks at once when it is shown again.
(() => {
    const root = document.querySelector(".pgwerk-overview");
    const seconds = Number(root.dataset.refresh);
    const STOPPED = "pgwerk-overview-stopped";
    let timer = null;
    let stopped = sessionStorage.getItem(STOPPED) === "yes";

    const status = document.createElement("span");
    status.setAttribute("role", "status");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    root.querySelector("[data-controls]").append(button, " ", status);

    // Where the focus was, in words that still hold in the new part.
    function pathOf(element, part) {
        const steps = [];
        for (let node = element; node && node !== part; node = node.parentElement) {
            steps.unshift(Array.prototype.indexOf.call(node.parentElement.children, node));
        }
        return steps;
    }

    function replace(part, fresh) {
        if (part.innerHTML === fresh.innerHTML) return;
        const scrolls = [...part.querySelectorAll(".pgwerk-scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
        const focused = part.contains(document.activeElement) ? document.activeElement : null;
        const path = focused && pathOf(focused, part);
        const href = focused && focused.getAttribute("href");
        part.innerHTML = fresh.innerHTML;
        part.querySelectorAll(".pgwerk-scroll").forEach((each, n) => {
            if (scrolls[n]) [each.scrollLeft, each.scrollTop] = scrolls[n];
        });
        if (focused) {
            const same = href && [...part.querySelectorAll("a")].find((each) => each.getAttribute("href") === href);
            const there = same || path.reduce((node, step) => node && node.children[step], part);
            if (there) there.focus({preventScroll: true});
        }
    }

    async function look() {
        timer = null;
        try {
            const response = await fetch(location.href, {headers: {"X-Requested-With": "XMLHttpRequest"}});
            if (!response.ok || response.redirected) throw new Error(response.statusText);
            const page = new DOMParser().parseFromString(await response.text(), "text/html");
            for (const part of root.querySelectorAll("[data-part]")) {
                const fresh = page.getElementById(part.id);
                if (fresh) replace(part, fresh);
            }
            status.textContent = "";
            root.dataset.looks = String(Number(root.dataset.looks || 0) + 1);
        } catch {
            status.textContent = root.dataset.stale;
        }
        wait();
    }

    function wait() {
        clearTimeout(timer);
        timer = stopped || document.hidden ? null : setTimeout(look, seconds * 1000);
    }

    function label() {
        button.textContent = stopped ? root.dataset.go : root.dataset.pause;
    }

    button.addEventListener("click", () => {
        stopped = !stopped;
        sessionStorage.setItem(STOPPED, stopped ? "yes" : "no");
        label();
        if (stopped) wait(); else look();
    });

    document.addEventListener("visibilitychange", () => {
        if (document.hidden || stopped) wait(); else look();
    });

    label();
    wait();
})();
