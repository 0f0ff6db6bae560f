"use strict";
// Small helps for pages that work without them: copy, print, keys, and live updates.
(() => {
  const said = (text) => { const at = document.getElementById("said"); if (at) at.textContent = text; };

  // Copies on plain http too, where browsers have no clipboard API.
  const copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "sr";
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) {
      const what = button.dataset.copy;
      await copy(what.startsWith("#") ? document.getElementById(what.slice(1)).textContent : what);
      said("Copied.");
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1200);
    }
    if (event.target.closest("[data-print]")) window.print();
    const close = event.target.closest("[data-close]");
    const drawer = close && close.closest(".drawer");
    if (drawer) {
      event.preventDefault();
      shut(drawer);
    }
  });

  const shut = (drawer) => {
    drawer.classList.remove("open");
    const row = document.querySelector("tr[aria-selected] a");
    document.querySelectorAll("tr[aria-selected]").forEach((each) => each.removeAttribute("aria-selected"));
    drawer.replaceChildren();
    if (row) row.focus();
  };

  document.addEventListener("htmx:afterSwap", (event) => {
    const link = event.detail.requestConfig && event.detail.requestConfig.elt;
    if (!link || !link.matches || !link.matches("[data-drawer]")) return;
    document.querySelectorAll("tr[aria-selected]").forEach((each) => each.removeAttribute("aria-selected"));
    link.closest("tr").setAttribute("aria-selected", "true");
    event.detail.target.classList.add("open");
  });

  // Keys: j and k move, Enter opens (it is a link), Esc closes, / finds, n makes a batch.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      const open = document.querySelector(".drawer.open");
      if (open) shut(open);
      return;
    }
    if (event.target.closest("input, select, textarea")) return;
    const links = [...document.querySelectorAll("main tbody tr td > a:first-child")];
    const at = links.indexOf(document.activeElement);
    if (event.key === "j" && links.length) links[Math.min(at + 1, links.length - 1)].focus();
    else if (event.key === "k" && links.length) links[Math.max(at - 1, 0)].focus();
    else if (event.key === "/") {
      const field = document.querySelector('main input[type="search"]') || document.querySelector(".goto input");
      if (field) { event.preventDefault(); field.focus(); }
    } else if (event.key === "n") {
      const link = document.querySelector('a[href="/console/batches/new"]');
      if (link) link.click();
    }
  });

  // A dropped file is the same as a chosen one.
  document.querySelectorAll("[data-drop]").forEach((area) => {
    const input = area.querySelector('input[type="file"]');
    area.addEventListener("dragover", (event) => event.preventDefault());
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      if (!event.dataTransfer.files.length) return;
      input.files = event.dataTransfer.files;
      input.form.requestSubmit();
    });
    input.addEventListener("change", () => input.form.requestSubmit());
  });

  // A part that has no stream is asked for anew every 30 s while the page is seen.
  document.querySelectorAll("[data-poll]").forEach((part) => setInterval(() => {
    if (!document.hidden) htmx.ajax("GET", part.dataset.poll, { target: part, swap: "innerHTML" });
  }, 30000));

  // A message of the stream says that something changed; the part of the page is then asked for
  // anew, at most every 5 s. A hidden page has no stream. Without streams it asks every 10 s.
  document.querySelectorAll("[data-live]").forEach((part) => {
    let stream = null, timer = null, state = part.querySelector("[data-state]")?.dataset.state, next = 0;
    const refresh = async () => {
      next = Date.now() + 5000;
      await htmx.ajax("GET", part.dataset.from, { target: part, swap: "innerHTML" });
      const now = part.querySelector("[data-state]")?.dataset.state;
      if (now !== state) said(part.querySelector(".note b")?.textContent || "");
      state = now;
    };
    const soon = () => { if (!timer) timer = setTimeout(() => { timer = null; refresh(); }, Math.max(0, next - Date.now())); };
    const stop = () => { if (stream) stream.close(); stream = null; };
    const start = () => {
      if (stream || document.hidden) return;
      stream = new EventSource(part.dataset.live);
      stream.addEventListener("progress", soon);
      for (const end of ["completed", "failed", "expired", "cancelled"])
        stream.addEventListener(`batch.${end}`, () => { stop(); location.reload(); });
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
    setInterval(() => { if (!document.hidden && stream && stream.readyState === EventSource.CLOSED) { stop(); soon(); start(); } }, 10000);
    start();
  });
})();
