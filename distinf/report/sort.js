for (const table of document.querySelectorAll("table")) {
  const heads = table.tHead.rows[table.tHead.rows.length - 1].cells, body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const key = (row, at) => {
    const cell = row.cells[at], number = Number(cell.dataset.value ?? "NaN");
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });
  [...heads].forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      const known = row => row.cells[at].textContent.trim() !== "" ? 0 : 1;
      const rows = [...body.rows].sort((a, b) =>
        known(a) - known(b) || sign * order(key(a, at), key(b, at)));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      table.classList.add("sorted");
      body.append(...rows);
    });
  });
}
