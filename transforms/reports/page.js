"use strict";
// All content is on the page already. The script sorts and hides it, and writes only counts.
const gallery = document.getElementById("gallery");
if (gallery) {
  const cards = [...gallery.children];
  const field = (id) => document.getElementById(id);
  const filters = [...document.querySelectorAll("[data-filter]")];
  const update = () => {
    const text = field("find").value.toLowerCase();
    const key = field("sort").value;
    let shown = 0;
    for (const card of cards) {
      const data = card.dataset;
      card.hidden = !(data.id.toLowerCase().includes(text) && filters.every((filter) => !filter.value || data[filter.dataset.filter] === filter.value));
      shown += !card.hidden;
    }
    const by = key === "id" ? (a, b) => (a.dataset.id < b.dataset.id ? -1 : 1) : (a, b) => b.dataset[key] - a.dataset[key];
    gallery.append(...[...cards].sort(by));
    field("shown").textContent = `${shown} of ${cards.length} shown`;
  };
  for (const control of [field("find"), field("sort"), ...filters]) control.addEventListener("input", update);
  field("controls").hidden = false;
  update();
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => Number(row.cells[head.cellIndex].dataset.value);
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)));
    table.tBodies[0].append(...rows);
  });
}
