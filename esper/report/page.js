"use strict";
(() => {
  const form = document.getElementById("filter");
  if (form) {
    const search = document.getElementById("search");
    const empty = document.getElementById("no-match");
    const apply = () => {
      const kinds = new Set([...form.querySelectorAll("input:checked")].map((box) => box.value));
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let any = false;
      for (const pass of document.querySelectorAll("details.pass")) {
        let left = 0;
        for (const row of pass.querySelectorAll("tbody tr")) {
          const text = row.textContent.toLowerCase();
          row.hidden = !(kinds.has(row.dataset.kind) && words.every((w) => text.includes(w)));
          left += row.hidden ? 0 : 1;
        }
        pass.hidden = left === 0;
        if (words.length && left) pass.open = true;
        any = any || left > 0;
      }
      empty.hidden = any;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }
  const show = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", show);
  show();
  // Paper cannot unfold: all is open on it but the records, and returns to what it was.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open]):not(.record)")];
    folded.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
})();
