"use strict";
(function () {
  document.documentElement.classList.add("js");
  sortTables();
  startViewer();

  function sortTables() {
    document.querySelectorAll("table.sortable").forEach(function (table) {
      const heads = Array.from(table.tHead.querySelectorAll("th:not([colspan])"));
      heads.forEach(function (head) {
        // Not a <button>: browsers leave it out where a heading repeats on the next printed page.
        const button = document.createElement("span");
        button.setAttribute("role", "button");
        button.tabIndex = 0;
        while (head.firstChild) button.appendChild(head.firstChild);
        head.appendChild(button);
        button.addEventListener("click", function () { sortBy(table, head); });
        button.addEventListener("keydown", function (event) {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          sortBy(table, head);
        });
      });
    });
  }

  function columnOf(table, head) {
    // Column positions with rowspan and colspan taken into account.
    const taken = [];
    for (let y = 0; y < table.tHead.rows.length; y++) {
      let x = 0;
      for (const cell of table.tHead.rows[y].cells) {
        while ((taken[y] || [])[x]) x++;
        if (cell === head) return x;
        for (let dy = 0; dy < cell.rowSpan; dy++) {
          taken[y + dy] = taken[y + dy] || [];
          for (let dx = 0; dx < cell.colSpan; dx++) taken[y + dy][x + dx] = true;
        }
        x += cell.colSpan;
      }
    }
    return -1;
  }

  function sortBy(table, head) {
    const column = columnOf(table, head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.tHead.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    Array.from(body.rows)
      .map(function (row, place) { return { row: row, place: place, key: keyOf(row.cells[column]) }; })
      .sort(function (a, b) {
        // A value that does not exist stays last in both directions.
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
        const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true });
        return (up ? order : -order) || a.place - b.place;
      })
      .forEach(function (entry) { body.appendChild(entry.row); });
  }

  function keyOf(cell) {
    if (!cell.hasAttribute("data-sort")) return cell.textContent.trim();
    const text = cell.getAttribute("data-sort");
    return text === "" ? null : Number(text);
  }

  function startViewer() {
    const stage = document.getElementById("viewer-stage");
    if (!stage) return;
    const cases = Array.from(stage.querySelectorAll(".case"));
    const choice = document.getElementById("viewer-case");
    const slider = document.getElementById("viewer-slice");
    const place = document.getElementById("viewer-place");

    function showCase(index) {
      const chosen = cases[index];
      cases.forEach(function (one) { one.classList.toggle("shown", one === chosen); });
      choice.value = String(index);
      slider.max = String(Number(chosen.dataset.count) - 1);
      slider.value = chosen.style.getPropertyValue("--at");
      showSlice();
    }

    function showSlice() {
      const chosen = cases[Number(choice.value)];
      chosen.style.setProperty("--at", slider.value);
      const number = Number(chosen.dataset.slices.split(" ")[Number(slider.value)]) + 1;
      place.textContent = number + " of " + chosen.dataset.total;
      slider.setAttribute("aria-valuetext", "slice " + number + " of " + chosen.dataset.total);
    }

    function move(step) {
      const next = Number(slider.value) + step;
      if (next >= 0 && next <= Number(slider.max)) { slider.value = String(next); showSlice(); }
    }

    choice.addEventListener("change", function () { showCase(Number(choice.value)); });
    slider.addEventListener("input", showSlice);
    stage.addEventListener("keydown", function (event) {
      const index = Number(choice.value);
      if (event.key === "ArrowRight") move(1);
      else if (event.key === "ArrowLeft") move(-1);
      else if (event.key === "ArrowDown") showCase(Math.min(index + 1, cases.length - 1));
      else if (event.key === "ArrowUp") showCase(Math.max(index - 1, 0));
      else return;
      event.preventDefault();
    });
    document.querySelectorAll("[data-layer]").forEach(function (box) {
      box.addEventListener("change", function () {
        stage.classList.toggle("no-" + box.dataset.layer, !box.checked);
      });
    });
    document.querySelectorAll("a[data-case]").forEach(function (link) {
      link.addEventListener("click", function () { showCase(Number(link.dataset.case)); stage.focus({ preventScroll: true }); });
    });
    showCase(0);
  }
})();
