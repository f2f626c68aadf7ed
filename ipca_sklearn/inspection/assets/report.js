"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const rows = JSON.parse(byId("rows").textContent);
  const settings = JSON.parse(byId("settings").textContent);
  byId("rows").remove(); // otherwise the pictures are in memory twice

  const scores = rows.filter((row) => row.score !== null).map((row) => row.score); // ascending
  const learnt = settings.threshold;
  const slider = byId("threshold");
  const list = byId("images");
  const ends = [...scores.slice(0, 1), ...scores.slice(-1), ...(learnt === null ? [] : [learnt])];
  const margin = (Math.max(...ends) - Math.min(...ends)) / 100 || 0.01;
  slider.min = ends.length ? Math.min(...ends) - margin : 0;
  slider.max = ends.length ? Math.max(...ends) + margin : 1;
  const atStart = learnt === null ? Number(slider.min) : learnt;
  let threshold = atStart; // exact; the slider rounds its value

  const number = (value) => value.toPrecision(4);
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    made.className = name;
    if (text !== undefined) made.textContent = text; // text, never markup
    return made;
  };
  const picture = (name, data, text) => {
    const made = element("img", name);
    made.alt = text;
    made.dataset.jpeg = data;
    return made;
  };

  const items = rows.map((row) => {
    const item = element("li", row.error === null ? "" : "error");
    item.tabIndex = 0;
    const pictures = element("div", "picture");
    if (row.image !== null) pictures.append(picture("image", row.image, ""));
    if (row.heat !== null) pictures.append(picture("heat", row.heat, "heat map"));
    const label = element("div", "label", row.error === null ? "" : "unreadable");
    item.append(pictures, label);
    if (row.score !== null) {
      const p = row.p === null ? "" : `, p = ${row.p.toPrecision(2)}`;
      item.append(element("div", "values", `score ${number(row.score)}${p}`));
    }
    item.append(element("div", "name", row.name));
    if (row.error !== null) item.append(element("div", "message", row.error));
    row.label = label;
    return item;
  });
  list.append(...items);

  const show = (image) => {
    if (!image.src) image.src = `data:image/jpeg;base64,${image.dataset.jpeg}`;
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        entry.target.querySelectorAll("img").forEach(show);
      }
    },
    { rootMargin: "800px" },
  );
  items.forEach((item) => near.observe(item));
  // A printer shows what is far from the window too.
  addEventListener("beforeprint", () => list.querySelectorAll("li:not([hidden]) img").forEach(show));

  // A card in focus is scrolled to where the header does not hide it.
  const header = document.querySelector("header");
  const keepClear = () => {
    const covers = getComputedStyle(header).position === "sticky";
    document.documentElement.style.scrollPaddingTop = covers ? `${header.offsetHeight + 8}px` : "";
  };
  new ResizeObserver(keepClear).observe(header);
  addEventListener("resize", keepClear);

  const relabel = () => {
    let anomalous = 0;
    rows.forEach((row, index) => {
      if (row.score === null) return;
      const low = row.score < threshold;
      anomalous += low;
      if (row.low === low) return;
      row.low = low;
      items[index].className = low ? "anomalous" : "normal";
      row.label.textContent = low ? "anomalous" : "normal";
    });
    byId("threshold-value").textContent = number(threshold);
    slider.setAttribute("aria-valuetext", number(threshold));
    return anomalous;
  };

  const update = () => {
    const anomalous = relabel();
    const label = byId("label").value;
    const text = byId("text").value.toLowerCase();
    let shown = 0;
    rows.forEach((row, index) => {
      const kind = row.error !== null ? "error" : row.low ? "anomalous" : "normal";
      const hidden = (label !== "all" && kind !== label) || !row.name.toLowerCase().includes(text);
      if (items[index].hidden !== hidden) items[index].hidden = hidden;
      shown += !hidden;
    });
    list.classList.toggle("heat-always", byId("heat").checked);
    const unreadable = rows.length - scores.length;
    byId("status").textContent =
      `${anomalous} of ${scores.length} images anomalous` +
      (unreadable ? `, ${unreadable} unreadable` : "") +
      `; ${shown} shown`;
    byId("none").hidden = shown > 0;
  };

  const remember = () => {
    const state = new URLSearchParams();
    if (threshold !== atStart) state.set("threshold", String(threshold));
    if (byId("label").value !== "all") state.set("label", byId("label").value);
    if (byId("text").value) state.set("text", byId("text").value);
    if (byId("heat").checked) state.set("heat", "1");
    history.replaceState(null, "", `#${state}`);
  };

  const recall = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    const given = Number(state.get("threshold") ?? NaN);
    threshold = Number.isFinite(given) ? given : atStart;
    slider.value = threshold;
    byId("label").value = state.get("label") ?? "all";
    if (byId("label").selectedIndex < 0) byId("label").value = "all";
    byId("text").value = state.get("text") ?? "";
    byId("heat").checked = state.has("heat");
    update();
  };

  let waiting = false;
  const later = () => {
    if (waiting) return; // one update per frame of the screen is enough
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      update();
      remember();
    });
  };
  slider.addEventListener("input", () => {
    threshold = Number(slider.value);
    later();
  });
  for (const id of ["label", "text", "heat"]) byId(id).addEventListener("input", later);
  byId("reset").addEventListener("click", () => {
    threshold = atStart;
    slider.value = threshold;
    later();
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", recall);
  recall();
})();
