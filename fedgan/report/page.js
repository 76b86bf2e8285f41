"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const film = JSON.parse(document.getElementById("film").textContent);

  // Sliders: all arms of a scene move together.
  for (const scene of all(".scene")) {
    const range = scene.querySelector("input[type=range]");
    if (!range) continue;
    const rounds = JSON.parse(range.dataset.rounds);
    const play = scene.querySelector(".play");
    const arms = all("img[data-at]", scene).map((img) => ({
      img,
      caption: img.closest("figure").querySelector("[data-caption]"),
      at: JSON.parse(img.dataset.at),
      captions: JSON.parse(img.dataset.captions),
    }));
    const show = () => {
      const i = Number(range.value);
      for (const arm of arms) {
        arm.img.src = film[arm.img.dataset.run][arm.at[i]];
        arm.caption.textContent = arm.captions[i];
      }
      const told = `round ${rounds[i]}`;
      range.setAttribute("aria-valuetext", told);
      scene.querySelector("output").textContent = told;
    };
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶";
      play.setAttribute("aria-label", "Play the rounds");
    };
    range.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (range.value === range.max) range.value = 0;
      play.textContent = "❚❚";
      play.setAttribute("aria-label", "Pause");
      show();
      timer = setInterval(() => {
        range.value = Number(range.value) + 1;
        show();
        if (range.value === range.max) stop();
      }, 500);
    });
  }

  // Menus: one scene or run at a time; without this script all of them are there.
  for (const menu of all("select[data-shows]")) {
    const show = () => {
      for (const part of all(`[data-group=${menu.dataset.shows}]`)) {
        part.hidden = (part.dataset.with || part.id) !== menu.value;
      }
    };
    menu.addEventListener("change", show);
    show();
  }

  // Tables: a click on a head sorts by that column, another one the other way; what is not known
  // stays at the end.
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => row.cells[column].dataset.value;
        const rows = all("tbody tr", table).sort((a, b) => {
          if ((value(a) === "") !== (value(b) === "")) return value(a) === "" ? 1 : -1;
          return up ? compare(value(a), value(b)) : compare(value(b), value(a));
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
